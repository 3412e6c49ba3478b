package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/plugins/envs"
)

func testBoard(names ...string) (*board, *bytes.Buffer, *time.Time) {
	var said bytes.Buffer
	now := time.Unix(1000, 0)
	a := newApp(world{stderr: &said, stdout: &said, now: func() time.Time { return now }})
	b := newBoard(a, names)
	b.style = barStyle{utf8: true, paint: plain}
	return b, &said, &now
}

func TestBoard_OneLineEach(t *testing.T) {
	t.Parallel()
	b, _, now := testBoard("whisper", "vad", "ocr", "embed")
	b.update(envs.Update{Name: "whisper", State: envs.Creating})
	b.update(envs.Update{Name: "ocr", State: envs.Installing})
	b.update(envs.Update{Name: "vad", State: envs.Kept, Detail: "up to date", Bytes: 3 << 20})
	*now = now.Add(75 * time.Second)
	b.update(envs.Update{Name: "whisper", State: envs.Installing, Detail: "Downloading torch (800.1MiB)\x1b[2J"})
	b.update(envs.Update{Name: "ocr", State: envs.Failed, Detail: "cannot install its packages: uv ended with code 1 (the network failed)"})
	want := []string{
		"⠋ whisper  installing     Downloading torch (800.1MiB)\uFFFD[2J  1m15s",
		"✔ vad      kept           up to date, 3.0 MiB                  0s",
		"✘ ocr      failed         cannot install its packages: uv…  1m15s",
		"· embed    waiting                                               ",
	}
	got := b.linesLocked(65, 20)
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got  %q\nwant %q", got[i], want[i])
		}
	}
	for width := 1; width < 90; width++ {
		for _, line := range b.linesLocked(width, 20) {
			if cells(line) > width {
				t.Fatalf("%d columns of %d: %q", cells(line), width, line)
			}
		}
	}
}

// More installations than the terminal has lines: those that move, and a sum.
func TestBoard_MoreThanFit(t *testing.T) {
	t.Parallel()
	var names []string
	for i := range 30 {
		names = append(names, fmt.Sprintf("p%02d", i))
	}
	b, _, _ := testBoard(names...)
	for i, s := range []envs.State{envs.Done, envs.Failed, envs.Creating, envs.Kept, envs.Installing} {
		b.update(envs.Update{Name: names[i], State: s})
	}
	b.note = "stopping"
	got := b.linesLocked(60, 6)
	if len(got) != 4 || !strings.Contains(got[0], "p02") || !strings.Contains(got[1], "p04") ||
		got[2] != "2 done, 1 failed, 25 waiting, of 30" || got[3] != "stopping" {
		t.Errorf("%q", got)
	}
}

// Without a terminal each step is a line, and nothing is drawn over.
func TestBoard_PlainLines(t *testing.T) {
	t.Parallel()
	b, said, now := testBoard("vad")
	b.update(envs.Update{Name: "vad", State: envs.Installing})
	b.update(envs.Update{Name: "vad", State: envs.Installing, Detail: "Downloading"})
	b.update(envs.Update{Name: "vad", State: envs.Waiting, Detail: "the network failed; attempt 2 in 2s"})
	*now = now.Add(3 * time.Second)
	b.update(envs.Update{Name: "vad", State: envs.Done})
	want := "vad: installing\nvad: waiting, the network failed; attempt 2 in 2s\nvad: done after 3.0s\n"
	if said.String() != want {
		t.Errorf("%q", said.String())
	}
}
