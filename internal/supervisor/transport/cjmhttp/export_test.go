package cjmhttp

// CallErrorOf is callError for the tests outside.
var CallErrorOf = callError
