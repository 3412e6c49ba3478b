// Package house holds the tests that keep the house in order: which way imports
// point, that every package says what it is, that nothing registers itself, and
// that no committed file names the machine it was written on. It has no code of
// its own; start with the table in imports_test.go.
package house
