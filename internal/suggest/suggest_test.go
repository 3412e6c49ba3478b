package suggest

import "testing"

func TestNearest(t *testing.T) {
	t.Parallel()
	known := []string{"server", "state_dir", "log_dir", "log", "python_path", "max_attempts"}
	for in, want := range map[string]string{
		"sever":       "server",
		"statedir":    "state_dir",
		"State-Dir":   "state_dir",
		"phyton_path": "python_path",
		"attempts":    "max_attempts",
		"zzz":         "",
		"":            "",
		"x":           "",
	} {
		if got := Nearest(in, known); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", in, got, want)
		}
	}
	if got := DidYouMean("sevrer", known); got != ` (did you mean "server"?)` {
		t.Errorf("DidYouMean = %q", got)
	}
	if got := DidYouMean("qqqqqqq", known); got != "" {
		t.Errorf("DidYouMean = %q, want nothing", got)
	}
}
