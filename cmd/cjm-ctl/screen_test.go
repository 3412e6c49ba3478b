package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func plain(_, s string) string { return s }

func TestBar_Drawing(t *testing.T) {
	t.Parallel()
	start := time.Unix(1000, 0)
	for _, c := range []struct {
		name  string
		view  view
		width int
		utf8  bool
		want  string
	}{
		{"unknown progress", view{title: "speech", phase: "loading", fraction: -1}, 60, true, "⠋ speech loading  12s"},
		{"unknown with message", view{title: "speech", phase: "loading", fraction: -1, message: "reading model"}, 60, true, "⠋ speech loading reading model 12s"},
		{"half", view{title: "speech", phase: "executing", fraction: 0.5}, 60, true, "⠋ speech executing ━━━━━━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌  50% 12s"},
		{"ascii", view{title: "speech", phase: "executing", fraction: 0.5, beat: 1}, 40, false, "/ speech executing ######------  50% 12s"},
		{"message", view{title: "s", phase: "executing", fraction: 1, message: "decoding the recording"}, 50, true, "⠋ s executing ━━━━━━━━━━━━━━━━ 100% decoding… 12s"},
		{"more than all", view{title: "s", phase: "x", fraction: 1.7}, 30, true, "⠋ s x ━━━━━━━━━━━━━━━ 100% 12s"},
		{"narrow", view{title: "speech", phase: "executing", fraction: 0.5}, 12, true, "⠋ speech ex…"},
		{"escape sequences", view{title: "a\x1b[2Jb", phase: "x", fraction: -1, message: "c\x1b]0;d\x07"}, 60, true, "⠋ a\uFFFD[2Jb x c\uFFFD]0;d\uFFFD 12s"},
		{"wide letters", view{title: "音声", phase: "executing", fraction: 0.5}, 40, true, "⠋ 音声 executing ━━━━━━━╌╌╌╌╌╌╌  50% 12s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.view.started = start
			got := c.view.bar(start.Add(12*time.Second), c.width, barStyle{utf8: c.utf8, paint: plain})
			if got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			if cells(got) > c.width {
				t.Errorf("%d columns of %d", cells(got), c.width)
			}
		})
	}
}

// A line that is wider than the terminal wraps and leaves rubbish behind.
func FuzzBar_NeverTooWide(f *testing.F) {
	f.Add("speech", "executing", "message", 0.5, 80)
	f.Add("音声\x1b", "", "\u0301", 2.0, 3)
	f.Fuzz(func(t *testing.T, title, phase, message string, fraction float64, width int) {
		width = 1 + max(width, -width)%300
		v := view{title: title, phase: harmless(phase, false), message: message, fraction: fraction}
		got := v.bar(time.Unix(5, 0), width, barStyle{utf8: true, paint: plain})
		if cells(got) > width {
			t.Fatalf("%d columns of %d: %q", cells(got), width, got)
		}
		if strings.ContainsAny(got, "\x1b\n\r") {
			t.Fatalf("control characters in %q", got)
		}
	})
}

func TestTable_Fits(t *testing.T) {
	t.Parallel()
	tab := &table{cols: []column{{title: "JOB", flex: true, min: 6}, {title: "PRIO", right: true}, {title: "NOTE", flex: true, min: 8}}}
	tab.row("01JOBNUMBERONE", "5", "the model does not fit into the memory")
	tab.row("two", "", "line\nbreak\x1b[31m")
	for _, c := range []struct {
		width int
		want  string
	}{
		{0, `
JOB             PRIO  NOTE
01JOBNUMBERONE     5  the model does not fit into the memory
two                -  line break` + "\uFFFD" + `[31m
`},
		{40, `
JOB             PRIO  NOTE
01JOBNUMBERONE     5  the model does no…
two                -  line break` + "\uFFFD" + `[31m
`},
		{26, `
JOB        PRIO  NOTE
01JOBNUM…     5  the mode…
two           -  line bre…
`},
		{10, `
JOB     PRIO  NOTE
01JOB…     5  the mod…
two        -  line br…
`},
	} {
		var b bytes.Buffer
		if err := tab.write(&b, c.width, func(s string) string { return s }); err != nil {
			t.Fatal(err)
		}
		if "\n"+b.String() != c.want {
			t.Errorf("width %d:\n%swant%s", c.width, b.String(), c.want)
		}
	}
}

func TestHuman(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct{ got, want string }{
		{span(350 * time.Millisecond), "350ms"},
		{span(4250 * time.Millisecond), "4.2s"},
		{span(59 * time.Second), "59s"},
		{span(65 * time.Second), "1m05s"},
		{span(3*time.Hour + 12*time.Minute), "3h12m"},
		{span(52 * time.Hour), "2d4h"},
		{span(-time.Minute), "-1m00s"},
		{ago(now, now.Add(-500*time.Millisecond)), "now"},
		{ago(now, now.Add(-3*time.Minute)), "3m00s ago"},
		{ago(now, now.Add(time.Minute)), "in 1m00s"},
		{ago(now, time.Time{}), "-"},
		{ago(now, now.AddDate(0, -2, 0)), "2026-01-01"},
		{size(999), "999 B"},
		{size(1536), "1.5 KiB"},
		{size(-1536), "-1.5 KiB"},
		{size(5 << 40), "5.0 TiB"},
		{sizeMB(21.5), "21.5 MiB"},
		{fit("abcdef", 4), "abc…"},
		{fit("abcdef", 0), ""},
		{fit("音声認識", 5), "音声…"},
		{harmless("a\tb\nc\x00\u202e", true), "a\tb\nc\uFFFD\uFFFD"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
