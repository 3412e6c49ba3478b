package daemon

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	. "github.com/cjmd/cjmd/test/daemontest"
)

// pointsAt fails the test unless a problem names the place.
func pointsAt(t *testing.T, p *client.ProblemError, pointer string) wire.FieldError {
	t.Helper()
	for _, e := range p.Errors {
		if e.Pointer == pointer {
			return e
		}
	}
	t.Errorf("the problem points at %+v, not at %s", p.Errors, pointer)
	return wire.FieldError{}
}

func TestBadInput_UnknownPlugin(t *testing.T) {
	s, _ := setup(t)
	p := Problem(t, 422, "unknown_plugin")(s.Raw("POST", "/v1/jobs", `{"plugin":"wrods","args":["a"]}`))
	if e := pointsAt(t, p, "/plugin"); e.Suggestion != "words" {
		t.Errorf("it suggests %q", e.Suggestion)
	}
	Problem(t, 404, "plugin_not_found")(s.API.GetPlugin(s.Ctx(), "wrods"))
}

func TestBadInput_DisabledPlugin(t *testing.T) {
	s, lab := setup(t)
	Must[wire.Plugin](t)(s.API.DisablePlugin(s.Ctx(), lab))
	Problem(t, 409, "plugin_disabled")(s.API.SubmitJob(s.Ctx(), nil, OpOf(lab, "echo")))
	Must[wire.Plugin](t)(s.API.EnablePlugin(s.Ctx(), lab))
	s.Completed(OpOf(lab, "echo"), nil)
}

func TestBadInput_UnusablePlugin(t *testing.T) {
	s, _ := setup(t)
	p := Problem(t, 409, "plugin_unusable")(s.Raw("POST", "/v1/jobs", `{"plugin":"unusable"}`))
	if !strings.Contains(p.Detail, "descriptoin") {
		t.Errorf("the detail is %q", p.Detail)
	}
}

func TestBadInput_ArgsNoArray(t *testing.T) {
	s, lab := setup(t)
	for _, args := range []string{`{"a":1}`, `"text"`, `7`, `true`} {
		p := Problem(t, 422, "invalid_body")(s.Raw("POST", "/v1/jobs", `{"plugin":"`+lab+`","args":`+args+`}`))
		pointsAt(t, p, "/args")
	}
}

func TestBadInput_KwargsNoObject(t *testing.T) {
	s, lab := setup(t)
	for _, kwargs := range []string{`[1]`, `"text"`, `7`, `false`} {
		p := Problem(t, 422, "invalid_body")(s.Raw("POST", "/v1/jobs", `{"plugin":"`+lab+`","kwargs":`+kwargs+`}`))
		pointsAt(t, p, "/kwargs")
	}
}

func TestBadInput_BodyOfTwoMiB(t *testing.T) {
	s, lab := setup(t)
	body := `{"plugin":"` + lab + `","args":["` + strings.Repeat("x", 2<<20) + `"]}`
	Problem(t, 413, "body_too_large")(s.Raw("POST", "/v1/jobs", body))
	// Also when the client does not say beforehand how long it is.
	resp, err := s.API.Do(s.Ctx(), "POST", "/v1/jobs", struct{ *bytes.Reader }{bytes.NewReader([]byte(body))}, http.Header{"Content-Type": {"application/json"}})
	Problem(t, 413, "body_too_large")(resp, err)
	s.Completed(OpOf(lab, "echo", "text", strings.Repeat("x", 900<<10)), nil)
}

func TestBadInput_NestingOf100(t *testing.T) {
	s, lab := setup(t)
	deep := func(n int) string {
		return `{"plugin":"` + lab + `","args":[` + strings.Repeat("[", n) + strings.Repeat("]", n) + `]}`
	}
	Problem(t, 400, "too_deep")(s.Raw("POST", "/v1/jobs", deep(100)))
	s.Wait(Must[wire.Job](t)(s.Raw("POST", "/v1/jobs", deep(50))).Id)
}

func TestBadInput_DuplicateKeys(t *testing.T) {
	s, lab := setup(t)
	p := Problem(t, 400, "duplicate_key")(s.Raw("POST", "/v1/jobs", `{"plugin":"`+lab+`","priority":1,"priority":2}`))
	pointsAt(t, p, "/priority")
	p = Problem(t, 400, "duplicate_key")(s.Raw("POST", "/v1/jobs", `{"plugin":"`+lab+`","kwargs":{"a":{"b":1,"b":2}}}`))
	pointsAt(t, p, "/kwargs/a/b")
}

func TestBadInput_UnknownField(t *testing.T) {
	s, lab := setup(t)
	p := Problem(t, 422, "invalid_body")(s.Raw("POST", "/v1/jobs", `{"plugin":"`+lab+`","priorty":1}`))
	if e := pointsAt(t, p, "/priorty"); e.Suggestion != "priority" {
		t.Errorf("it suggests %q in %+v", e.Suggestion, e)
	}
	p = Problem(t, 422, "invalid_body")(s.Raw("POST", "/v1/jobs:batch", `{"jobs":[{"plugin":"`+lab+`"},{"plugin":"`+lab+`","kwarg":{}}]}`))
	pointsAt(t, p, "/jobs/1/kwarg")
}

func TestBadInput_NoJSON(t *testing.T) {
	s, lab := setup(t)
	for _, body := range []string{`{`, `{"plugin":"` + lab + `"} x`, `plugin`, "{\"plugin\":\"\xff\"}", `{"plugin":"` + lab + `","args":[NaN]}`} {
		Problem(t, 400, "invalid_json")(s.Raw("POST", "/v1/jobs", body))
	}
	Problem(t, 415, "content_type")(s.Raw("POST", "/v1/jobs", `{"plugin":"lab"}`, "Content-Type", "text/plain"))
	Problem(t, 404, "not_found")(s.Raw("GET", "/v1/nowhere", ""))
	Problem(t, 405, "method_not_allowed")(s.Raw("DELETE", "/v1/jobs", ""))
}

func TestBadInput_BadCursor(t *testing.T) {
	s, _ := setup(t)
	for _, cursor := range []string{"nonsense", "-1", strings.Repeat("A", 3000)} {
		Problem(t, 400, "bad_cursor")(s.Raw("GET", "/v1/jobs?cursor="+cursor, ""))
	}
	Problem(t, 400, "invalid_parameter")(s.Raw("GET", "/v1/jobs?limit=many", ""))
}

func TestBadInput_BadLastEventID(t *testing.T) {
	s, lab := setup(t)
	job := s.Completed(OpOf(lab, "echo"), nil)
	for _, path := range []string{"/v1/events", JobPath(job.Id, "events"), JobPath(job.Id, "stream")} {
		for _, id := range []string{"abc", "-1", "1.5", "99999999999999999999999"} {
			Problem(t, 400, "bad_event_id")(s.Raw("GET", path, "", "Last-Event-ID", id))
			Problem(t, 400, "bad_event_id")(s.Raw("GET", path+"?after="+id, ""))
		}
	}
}

func TestBadInput_ValuesAreNotRepeated(t *testing.T) {
	s, lab := setup(t)
	const secret = "s3cr3t-in-the-wrong-place"
	for _, body := range []string{
		`{"plugin":"` + lab + `","args":"` + secret + `"}`, `{"plugin":"` + lab + `","priority":"` + secret + `"}`,
		`{"plugin":"` + lab + `","run_timeout":"` + secret + `"}`, `{"plugin":"` + secret + `"}`,
	} {
		resp, err := s.Raw("POST", "/v1/jobs", body)
		if err != nil {
			t.Fatal(err)
		}
		var p json.RawMessage
		if err := json.NewDecoder(resp.Body).Decode(&p); err != nil || resp.StatusCode/100 != 4 {
			t.Errorf("the answer is %s: %v", resp.Status, err)
		}
		_ = resp.Body.Close()
		if strings.Contains(string(p), secret) {
			t.Errorf("the problem repeats what was sent: %s", p)
		}
	}
}

func TestBadResult_NaN(t *testing.T) {
	s, lab := setup(t)
	job := s.Failed(OpOf(lab, "nan"), wire.JobErrorCategoryFatal)
	if !strings.Contains(job.Error.Message, "result.scores[1] is NaN") {
		t.Errorf("the message is %q", job.Error.Message)
	}
	job = s.Failed(OpOf(lab, "object"), wire.JobErrorCategoryFatal)
	if !strings.Contains(job.Error.Message, "result.deep[0]") {
		t.Errorf("the message is %q", job.Error.Message)
	}
	s.Completed(OpOf(lab, "echo"), nil)
}

func TestResult_Bytes(t *testing.T) {
	s, lab := setup(t)
	var got struct{ Type, Encoding, Data string }
	s.Completed(OpOf(lab, "bytes"), &got)
	if got.Encoding != "base64" || got.Data != "AP9ieXRlcw==" {
		t.Errorf("the result is %+v", got)
	}
}

func TestResult_FiftyMB(t *testing.T) {
	s, lab := setup(t)
	const size = 50_000_000
	job := s.Completed(OpOf(lab, "big", "size", size), nil)
	if job.Result.Size != size+2 || job.Result.Value != nil {
		t.Errorf("the result is described as %+v", job.Result)
	}
	resp, err := s.API.GetResult(s.Ctx(), job.Id, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var n, other int
	buf := make([]byte, 1<<20)
	for {
		got, err := resp.Body.Read(buf)
		n += got
		other += got - bytes.Count(buf[:got], []byte("x"))
		if err != nil {
			break
		}
	}
	if n != size+2 || other != 2 || resp.StatusCode != http.StatusOK {
		t.Errorf("%d bytes came, %d of them not as sent", n, other)
	}
	part, err := s.Raw("GET", JobPath(job.Id, "result"), "", "Range", "bytes=0-4", "If-Range", resp.Header.Get("ETag"))
	if err != nil || part.StatusCode != http.StatusPartialContent {
		t.Fatalf("a part of the result is answered with %v, %v", part, err)
	}
	defer part.Body.Close()
	if n, _ := part.Body.Read(buf); string(buf[:n]) != `"xxxx` {
		t.Errorf("the part is %q", buf[:n])
	}
}
