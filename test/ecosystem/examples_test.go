//go:build ecosystem

package ecosystem

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/test/daemontest"
)

// envExamples is a state directory in which cjm-ctl install-all has installed
// examples/plugins.yaml; envCtl is cjm-ctl.
const (
	envExamples = "ECOSYSTEM_EXAMPLES"
	envCtl      = "ECOSYSTEM_CTL"
)

// examples starts a daemon that has the installed examples.
func examples(t *testing.T) *daemontest.Daemon {
	t.Helper()
	state := os.Getenv(envExamples)
	if state == "" {
		t.Skip(envExamples + " is not set: run make ecosystem")
	}
	// What was not installed is found, too: torch-burn, where there is no graphics card.
	paths := []string{filepath.Join(state, "manifests"), sample(t, ".")}
	return daemontest.Start(t, daemontest.Options{Config: map[string]any{"plugins.paths": paths}})
}

// sample is the absolute path of a file of the examples.
func sample(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../../examples/plugins", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestExamples runs each of our own example plugins on its sample, with its real model.
func TestExamples(t *testing.T) {
	d := examples(t)
	for _, e := range []struct {
		plugin string
		check  func(c caller)
	}{
		{"speech", recognises}, {"whisper", transcribes}, {"vad", findsSpeech}, {"ocr", reads},
		{"filetype", tellsTypes}, {"embed", ranks}, {"ffmpeg", converts}, {"torch-burn", burns},
	} {
		t.Run(e.plugin, func(t *testing.T) {
			e.check(caller{t: t, s: d.Session(t), plugin: e.plugin})
		})
	}
}

func kwargs(pairs ...any) call {
	k := call{kwargs: map[string]any{}}
	for i := 0; i+1 < len(pairs); i += 2 {
		k.kwargs[pairs[i].(string)] = pairs[i+1]
	}
	return k
}

func recognises(c caller) {
	has(c.t, c.object(kwargs("audio", sample(c.t, "speech/samples/goforward.wav"))), map[string]any{"text": "go forward ten meters"})
}

func transcribes(c caller) {
	both := kwargs("audio", sample(c.t, "ffmpeg/samples/two-speakers.ogg"))
	text, _ := c.object(both)["text"].(string)
	for _, words := range []string{"o forward", "10 meters", "married a more amiable woman", "more respectable"} {
		if !strings.Contains(text, words) {
			c.t.Errorf("the transcript lacks %q: %s", words, text)
		}
	}
	if chunks := c.chunks(both); len(chunks) < 2 {
		c.t.Errorf("streamed %v, want at least two segments", chunks)
	}
	c.fails(kwargs("audio", sample(c.t, "README.md")), wire.JobErrorCategoryUserInput)
	c.fails(kwargs("audio", "/no/such/file.wav"), wire.JobErrorCategoryUserInput)
}

func findsSpeech(c caller) {
	audio := kwargs("audio", sample(c.t, "speech/samples/austen.wav"))
	found := c.object(audio)
	if speech, _ := found["speech_seconds"].(float64); speech < 4.5 || speech > 6 {
		c.t.Errorf("%v s of speech, want 4.5 to 6", speech)
	}
	segments, _ := found["segments"].([]any)
	equal(c.t, len(c.chunks(audio)), len(segments))
}

func reads(c caller) {
	pages := call{kwargs: map[string]any{"image": []string{sample(c.t, "ocr/samples/receipt.png"), sample(c.t, "ocr/samples/page2.png")}}}
	text, _ := c.object(pages)["text"].(string)
	for _, words := range []string{"Corner Bakery", "20417", "Rye bread", "12.95", "Page two of two"} {
		if !strings.Contains(text, words) {
			c.t.Errorf("the text lacks %q: %s", words, text)
		}
	}
	equal(c.t, len(c.chunks(pages)), 2)
	c.fails(kwargs("image", sample(c.t, "README.md")), wire.JobErrorCategoryUserInput)
}

func tellsTypes(c caller) {
	folder := kwargs("path", sample(c.t, "filetype/samples/mixed"))
	want := map[string]any{"python": 1.0, "png": 1.0, "json": 1.0, "wav": 1.0, "gzip": 1.0, "shell": 1.0}
	has(c.t, c.object(folder), map[string]any{"labels": want})
	equal(c.t, len(c.chunks(folder)), 6)
}

func ranks(c caller) {
	content, err := os.ReadFile(sample(c.t, "embed/samples/sentences.json"))
	if err != nil {
		c.t.Fatal(err)
	}
	var texts []string
	if err := json.Unmarshal(content, &texts); err != nil {
		c.t.Fatal(err)
	}
	found := c.object(kwargs("texts", texts, "query", "Trains to the north in the morning"))
	has(c.t, found, map[string]any{"dimensions": 384.0, "model": "all-MiniLM-L6-v2"})
	var best []string
	for _, m := range found["matches"].([]any)[:2] {
		best = append(best, m.(map[string]any)["text"].(string))
	}
	slices.Sort(best)
	equal(c.t, best, []string{"The train to Hamburg leaves at nine.", "When does the next railway connection depart?"})
}

func converts(c caller) {
	job := c.submit(kwargs("input", media(c.t), "rate", 16000, "channels", 1, "output", "speech.wav"), false)
	c.s.IsCompleted(c.s.Wait(job.Id))
	var made struct{ Path string }
	c.s.Result(job.Id, &made)
	isSpeechWAV(c.t, made.Path)
	told := false
	for _, ev := range c.s.Stream(daemontest.JobPath(job.Id, "events")).Rest() {
		fraction, _ := daemontest.Data(c.t, ev)["progress"].(float64)
		told = told || ev.Kind == "progress" && fraction > 0
	}
	if !told {
		c.t.Error("ffmpeg told no progress")
	}
	c.fails(kwargs("input", sample(c.t, "README.md")), wire.JobErrorCategoryUserInput)
	c.fails(kwargs("input", "/no/such/file.ogg"), wire.JobErrorCategoryUserInput)
	c.fails(kwargs("input", media(c.t), "output", "../escape.wav"), wire.JobErrorCategoryUserInput)
	c.cancelled(kwargs("input", longRecording(c.t), "output", "long.mp3"))
}

// burns runs where there is a graphics card; elsewhere the job must say what is missing.
func burns(c caller) {
	job := c.s.Wait(c.submit(kwargs("seconds", 1, "take_mb", 64), false).Id)
	if job.Status == wire.JobStatusCompleted {
		var found struct {
			PeakAllocatedMB int `json:"peak_allocated_mb"`
		}
		c.s.Result(job.Id, &found)
		if found.PeakAllocatedMB < 576 {
			c.t.Errorf("its peak was %d MiB, want at least 512 + 64", found.PeakAllocatedMB)
		}
		return
	}
	c.s.IsFailed(job, wire.JobErrorCategoryResource)
	if !strings.Contains(job.Error.Message, "no GPU") {
		c.t.Errorf("the error does not say that there is no GPU: %s", job.Error.Message)
	}
}

// TestPipeline runs the script that chains three plugins.
func TestPipeline(t *testing.T) {
	d := examples(t)
	cmd := exec.CommandContext(d.Session(t).Ctx(), "../../examples/pipeline.sh")
	cmd.Env = append(os.Environ(), "CJMD_SOCKET="+d.Socket, "PATH="+filepath.Dir(os.Getenv(envCtl))+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the pipeline failed: %v\n%s", err, out)
	}
	t.Logf("%s", out)
	for _, words := range []string{"10 meters", "more amiable woman", "s are speech", "whisper  completed"} {
		if !strings.Contains(string(out), words) {
			t.Errorf("the output lacks %q", words)
		}
	}
}
