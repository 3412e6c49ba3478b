package daemon

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
	. "github.com/cjmd/cjmd/test/daemontest"
)

func TestAccess_TCPNeedsAToken(t *testing.T) {
	s, _ := setup(t)
	for _, token := range []string{"", "wrong", "cjmd_" + "0123456789abcdef"} {
		tcp := s.D.TCP(t, token)
		Problem(t, 401, "unauthorized")(tcp.API.ListJobs(s.Ctx(), nil))
		Problem(t, 401, "unauthorized")(tcp.Raw("POST", "/v1/jobs", `{"plugin":"lab"}`))
		Problem(t, 401, "unauthorized")(tcp.Raw("GET", "/v1/events", ""))
		Problem(t, 401, "unauthorized")(tcp.Raw("GET", "/metrics", ""))
		for _, open := range []string{"/livez", "/readyz", "/openapi.yaml"} {
			tcp.Text(open)
		}
	}
	admin := s.D.TCP(t, s.D.AdminToken(t))
	if job := admin.Completed(OpOf("labs", "echo"), nil); job.Submitter != "token:admin" {
		t.Errorf("the submitter is %q", job.Submitter)
	}
	info, err := os.Stat(filepath.Join(s.D.State, "admin.token"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the token's file is %v, %v", info, err)
	}
	if info, err := os.Stat(s.D.Socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket is %v, %v", info, err)
	}
}

func TestAccess_Roles(t *testing.T) {
	s, lab := setup(t)
	token := func(name string, role wire.Role) *Session {
		made := Must[wire.TokenCreated](t)(s.API.CreateToken(s.Ctx(), wire.TokenRequest{Name: lab + name, Role: role}))
		return s.D.TCP(t, made.Secret)
	}
	reader, one, two := token("-read", wire.RoleRead), token("-one", wire.RoleSubmit), token("-two", wire.RoleSubmit)
	Problem(t, 403, "forbidden")(reader.API.SubmitJob(s.Ctx(), nil, OpOf(lab, "echo")))
	Problem(t, 403, "forbidden")(one.API.LoadPlugin(s.Ctx(), lab))
	Problem(t, 403, "forbidden")(one.API.PauseQueue(s.Ctx(), nil))
	Problem(t, 403, "forbidden")(one.API.CreateToken(s.Ctx(), wire.TokenRequest{Name: "more", Role: wire.RoleAdmin}))
	req := OpOf(lab, "echo")
	req.Hold = true
	job := one.Submit(req)
	if job.Submitter != "token:"+lab+"-one" {
		t.Errorf("the submitter is %q", job.Submitter)
	}
	Problem(t, 403, "not_your_job")(two.API.CancelJob(s.Ctx(), job.Id, wire.CancelRequest{}))
	Problem(t, 403, "not_your_job")(two.API.PatchJob(s.Ctx(), job.Id, nil, wire.JobPatch{Priority: ptr(9)}))
	reader.Get(job.Id)
	if mine := Must[wire.JobPage](t)(one.API.ListJobs(s.Ctx(), &wire.ListJobsParams{Submitter: ptr("me")})).Jobs; len(mine) != 1 {
		t.Errorf("the submitter's own jobs are %+v", mine)
	}
	one.Cancel(job.Id)
	again := two.Submit(req)
	s.Cancel(again.Id) // an admin may

	resp, err := s.API.DeleteToken(s.Ctx(), lab+"-one")
	if err != nil || resp.StatusCode != 204 {
		t.Fatalf("revoking is answered with %v, %v", resp, err)
	}
	_ = resp.Body.Close()
	Problem(t, 401, "unauthorized")(one.API.ListJobs(s.Ctx(), nil))
	for _, name := range []string{"-read", "-two"} {
		resp, err := s.API.DeleteToken(s.Ctx(), lab+name)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
}

func TestAccess_TokensExpireAndOutliveARestart(t *testing.T) {
	d := own(t, Options{})
	s := d.Session(t)
	short := Must[wire.TokenCreated](t)(s.API.CreateToken(s.Ctx(), wire.TokenRequest{Name: "short", Role: wire.RoleRead, ExpiresIn: "1s"}))
	long := Must[wire.TokenCreated](t)(s.API.CreateToken(s.Ctx(), wire.TokenRequest{Name: "long", Role: wire.RoleRead, ExpiresIn: "1h"}))
	Must[wire.JobPage](t)(d.TCP(t, short.Secret).API.ListJobs(s.Ctx(), nil))
	Problem(t, 409, "exists")(s.API.CreateToken(s.Ctx(), wire.TokenRequest{Name: "long", Role: wire.RoleRead}))
	admin := d.AdminToken(t)
	d.Restart(t)
	<-time.After(time.Until(short.Token.ExpiresAt)) // the clock is what is tested
	Problem(t, 401, "unauthorized")(d.TCP(t, short.Secret).API.ListJobs(s.Ctx(), nil))
	Must[wire.JobPage](t)(d.TCP(t, long.Secret).API.ListJobs(s.Ctx(), nil))
	if d.AdminToken(t) != admin {
		t.Error("the first token changed with a restart")
	}
	for _, tok := range Must[wire.TokenList](t)(s.API.ListTokens(s.Ctx())).Tokens {
		if tok.Name == "long" && tok.LastUsedAt.IsZero() {
			t.Error("a used token does not say when")
		}
	}
	files, err := filepath.Glob(filepath.Join(d.State, "tokens*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("the tokens are kept in %v, %v", files, err)
	}
}

func TestAccess_ForeignHost(t *testing.T) {
	s, _ := setup(t)
	tcp := s.D.TCP(t, s.D.AdminToken(t))
	for host, status := range map[string]int{
		"evil.example": 403, "evil.example:80": 403, "localhost.evil.example": 403, "127.0.0.1.evil.example": 403,
		s.D.Addr(): 200, "localhost": 200, "LOCALHOST:1": 200,
	} {
		req, err := http.NewRequestWithContext(s.Ctx(), "GET", "http://"+s.D.Addr()+"/v1/jobs", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		req.Header.Set("Authorization", "Bearer "+s.D.AdminToken(t))
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if status == 403 {
			Problem(t, 403, "host_not_allowed")(resp, err)
			continue
		}
		if err != nil || resp.StatusCode != status {
			t.Errorf("with Host %s the answer is %v, %v", host, resp, err)
			continue
		}
		_ = resp.Body.Close()
	}
	tcp.Text("/livez")
}

func TestAccess_CrossOriginPost(t *testing.T) {
	s, lab := setup(t)
	tcp := s.D.TCP(t, s.D.AdminToken(t))
	body := `{"plugin":"` + lab + `","kwargs":{"op":"echo"}}`
	for _, header := range [][]string{
		{"Origin", "https://evil.example"}, {"Origin", "null"}, {"Sec-Fetch-Site", "cross-site"},
		{"Origin", "http://localhost:1", "Sec-Fetch-Site", "same-site"},
	} {
		Problem(t, 403, "cross_origin")(tcp.Raw("POST", "/v1/jobs", body, header...))
		Problem(t, 403, "cross_origin")(s.Raw("POST", "/v1/jobs", body, header...)) // the socket, too
	}
	// A page can read nothing either: no answer carries a CORS header.
	resp, err := tcp.Raw("GET", "/v1/jobs", "")
	if err != nil || resp.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("the answer has the headers %v, %v", resp.Header, err)
	}
	_ = resp.Body.Close()
	job := Must[wire.Job](t)(tcp.Raw("POST", "/v1/jobs", body, "Origin", "http://"+s.D.Addr(), "Sec-Fetch-Site", "same-origin"))
	s.IsCompleted(s.Wait(job.Id))
	if page := Must[wire.JobPage](t)(s.API.ListJobs(s.Ctx(), &wire.ListJobsParams{Plugin: &lab})); len(page.Jobs) != 1 {
		t.Errorf("%d jobs were accepted, one was sent from here", len(page.Jobs))
	}
}

func TestAccess_ListenBeyondLoopbackIsRefused(t *testing.T) {
	t.Parallel()
	d := New(t, Options{Config: map[string]any{"server.listen": "0.0.0.0:0"}})
	code, out := d.Second(t)
	if code == 0 || !contains(out, "tls_cert", "insecure_bind") {
		t.Errorf("it ended with %d: %s", code, out)
	}
}
