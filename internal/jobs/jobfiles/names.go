package jobfiles

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// ErrNotFound says that a job has no such file.
var ErrNotFound = errors.New("there is no such file")

// NameError says why a name cannot be a file's.
type NameError struct{ Reason string }

func (e *NameError) Error() string { return "the name of the file " + e.Reason }

// QuotaError says which limit an upload would pass.
type QuotaError struct {
	What  string
	Limit int64
	Full  bool // it is not the job's own share that is used up
}

func (e *QuotaError) Error() string {
	return fmt.Sprintf("%s may have %d bytes", e.What, e.Limit)
}

// ConditionError says that a file is there although there must be none, or that
// it is not the one that is wanted.
type ConditionError struct{ Wanted bool }

func (e *ConditionError) Error() string {
	if e.Wanted {
		return "there is no such version of the file"
	}
	return "there is a file of this name"
}

// ChecksumError says that other bytes arrived than were announced.
type ChecksumError struct{ Got string }

func (e *ChecksumError) Error() string { return "the bytes that arrived have the SHA-256 " + e.Got }

// What a name may have.
const (
	maxName    = 1024 // bytes
	maxElement = 255
	maxDepth   = 16
)

// CheckName reports whether name may be a file's: a relative path in Unicode's
// composed form, of printable characters. What looks the same is the same, and
// what one system takes for a way out is refused for all of them.
func CheckName(name string) error {
	switch {
	case name == "":
		return &NameError{"is empty"}
	case len(name) > maxName:
		return &NameError{fmt.Sprintf("is longer than %d bytes", maxName)}
	case !utf8.ValidString(name):
		return &NameError{"is not UTF-8"}
	case name[0] == '/':
		return &NameError{"begins with a slash; names are relative to the job's directory"}
	case !norm.NFC.IsNormalString(name):
		return &NameError{"is not in Unicode's composed form (NFC)"}
	}
	for _, r := range name {
		if r == '\\' || r != ' ' && !unicode.IsPrint(r) {
			return &NameError{fmt.Sprintf("has a character that it may not have (%U)", r)}
		}
	}
	elements := strings.Split(name, "/")
	if len(elements) > maxDepth {
		return &NameError{fmt.Sprintf("is nested deeper than %d directories", maxDepth)}
	}
	for _, e := range elements {
		switch {
		case e == "":
			return &NameError{"has an empty element"}
		case e == "." || e == "..":
			return &NameError{fmt.Sprintf("has the element %q", e)}
		case len(e) > maxElement:
			return &NameError{fmt.Sprintf("has an element longer than %d bytes", maxElement)}
		}
	}
	return nil
}
