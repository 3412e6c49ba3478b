package main

import (
	"os"
	"strings"
	"testing"
)

func TestPage_ShowsTheTables(t *testing.T) {
	t.Parallel()
	have, err := os.ReadFile("../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	want, err := render(string(have))
	if err != nil {
		t.Fatal(err)
	}
	if want != string(have) {
		t.Error("docs/ARCHITECTURE.md shows other states than the program has: make generate")
	}
}

func TestQuote_OneColonALineAndNoSemicolon(t *testing.T) {
	t.Parallel()
	got := quote("stateDiagram-v2\n    a --> b: asked: now; or never\n    b --> c\n")
	if want := "stateDiagram-v2\n    a --> b: asked, now, or never\n    b --> c\n"; got != want {
		t.Errorf("got %q", got)
	}
}

func TestRender_MissingMarkersAreAnError(t *testing.T) {
	t.Parallel()
	if _, err := render("# no markers\n"); err == nil || !strings.Contains(err.Error(), "states:jobs") {
		t.Errorf("got %v", err)
	}
}
