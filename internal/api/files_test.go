package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/jobs"
)

func hexSum(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

var octets = header("Content-Type", "application/octet-stream")

// held submits a job on hold and returns the address of its files.
func (f *fixture) held() (id, files string) {
	f.t.Helper()
	id = f.submit(map[string]any{"plugin": "textstats", "hold": true})
	return id, "/v1/jobs/" + id + "/files"
}

func TestFiles_UploadListDownloadRemove(t *testing.T) {
	t.Parallel()
	f := setup(t)
	id, files := f.held()
	r := f.do("PUT", files+"/in/my talk é.txt", "hello", octets, header("X-Checksum-SHA256", strings.ToUpper(hexSum("hello"))))
	require.Equal(t, 201, r.StatusCode, "%s", r.body)
	at := r.Header.Get("Location")
	require.Equal(t, files+"/in/my%20talk%20%C3%A9.txt", at)
	first := r.Header.Get("ETag")
	r = f.do("PUT", files+"/in%2Fmy%20talk%20%C3%A9.txt", "hello, world", header("Content-Type", "text/plain"), header("If-Match", first),
		header("Content-Digest", "sha-512=:x:, "+digest("hello, world")))
	require.Equal(t, 200, r.StatusCode, "%s", r.body)
	var stored wire.JobFile
	r.into(t, &stored)
	require.Equal(t, "in/my talk é.txt", stored.Name)
	require.Equal(t, hexSum("hello, world"), stored.Sha256)

	var list wire.JobFiles
	f.do("GET", files, nil).into(t, &list)
	require.Equal(t, []wire.JobFile{stored}, list.Files)
	require.EqualValues(t, 12, list.Bytes)

	r = f.do("GET", at, nil)
	require.Equal(t, "hello, world", string(r.body))
	require.Equal(t, digest("hello, world"), r.Header.Get("Repr-Digest"))
	require.Equal(t, "attachment", r.Header.Get("Content-Disposition"))
	require.Contains(t, r.Header.Get("Content-Security-Policy"), "sandbox")
	etag := r.Header.Get("ETag")
	require.Equal(t, stored.Etag, etag)
	r = f.do("HEAD", at, nil)
	require.Equal(t, 200, r.StatusCode)
	require.EqualValues(t, 12, r.ContentLength)
	require.Equal(t, etag, r.Header.Get("ETag"))
	r = f.do("GET", at, nil, header("Range", "bytes=7-"), header("If-Range", etag))
	require.Equal(t, 206, r.StatusCode)
	require.Equal(t, "world", string(r.body))
	require.Equal(t, "bytes 7-11/12", r.Header.Get("Content-Range"))
	require.Equal(t, 304, f.do("GET", at, nil, header("If-None-Match", etag)).StatusCode)

	require.Equal(t, "file_changed", f.do("DELETE", at, nil, header("If-Match", first)).code())
	require.Equal(t, 204, f.do("DELETE", at, nil, header("If-Match", etag)).StatusCode)
	require.Equal(t, "file_not_found", f.do("DELETE", at, nil).code())
	require.Equal(t, "file_not_found", f.do("GET", at, nil).code())
	require.Equal(t, 404, f.do("HEAD", at, nil).StatusCode)
	require.Equal(t, 200, f.do("GET", "/v1/jobs/"+id, nil).StatusCode)
}

func TestFiles_BadInput(t *testing.T) {
	t.Parallel()
	f := setup(t)
	_, files := f.held()
	require.Equal(t, 201, f.do("PUT", files+"/there", "0123456789", octets).StatusCode)
	long := strings.Repeat("a", 256)
	for what, c := range map[string]struct {
		method, path string
		edits        []edit
		status       int
		code         string
	}{
		"parent":                   {"PUT", files + "/../x", nil, 422, "file_name"},
		"parent, encoded":          {"PUT", files + "/%2e%2e%2fx", nil, 422, "file_name"},
		"parent, read":             {"GET", files + "/../../../cjmd.db", nil, 422, "file_name"},
		"absolute":                 {"PUT", files + "/%2Fetc%2Fpasswd", nil, 422, "file_name"},
		"NUL":                      {"PUT", files + "/a%00b", nil, 422, "file_name"},
		"control":                  {"PUT", files + "/a%0Ab", nil, 422, "file_name"},
		"backslash":                {"PUT", files + "/..%5Cx", nil, 422, "file_name"},
		"right to left":            {"PUT", files + "/a%E2%80%AEb", nil, 422, "file_name"},
		"decomposed":               {"PUT", files + "/e%CC%81", nil, 422, "file_name"},
		"not UTF-8":                {"PUT", files + "/a%FF", nil, 422, "file_name"},
		"empty":                    {"PUT", files + "/", nil, 400, "invalid_parameter"},
		"too long":                 {"PUT", files + "/" + long, nil, 422, "file_name"},
		"below a file":             {"PUT", files + "/there/x", nil, 422, "file_name"},
		"unknown job":              {"PUT", "/v1/jobs/none/files/x", nil, 404, "job_not_found"},
		"unknown job, list":        {"GET", "/v1/jobs/none/files", nil, 404, "job_not_found"},
		"unknown job, read":        {"GET", "/v1/jobs/none/files/x", nil, 404, "job_not_found"},
		"unknown job, remove":      {"DELETE", "/v1/jobs/none/files/x", nil, 404, "job_not_found"},
		"bad job":                  {"PUT", "/v1/jobs/.x/files/x", nil, 404, "job_not_found"},
		"compressed":               {"PUT", files + "/x", []edit{header("Content-Encoding", "gzip")}, 415, "content_encoding"},
		"there already":            {"PUT", files + "/there", []edit{header("If-None-Match", "*")}, 412, "file_exists"},
		"not by ETag":              {"PUT", files + "/there", []edit{header("If-None-Match", `"x"`)}, 400, "invalid_parameter"},
		"another version":          {"PUT", files + "/there", []edit{header("If-Match", `"x"`)}, 412, "file_changed"},
		"none to replace":          {"PUT", files + "/x", []edit{header("If-Match", "*")}, 412, "file_changed"},
		"wrong checksum":           {"PUT", files + "/there", []edit{header("X-Checksum-SHA256", hexSum("y"))}, 422, "checksum_mismatch"},
		"wrong digest":             {"PUT", files + "/there", []edit{header("Content-Digest", digest("y"))}, 422, "checksum_mismatch"},
		"no checksum":              {"PUT", files + "/x", []edit{header("X-Checksum-SHA256", "abc")}, 400, "invalid_parameter"},
		"no digest":                {"PUT", files + "/x", []edit{header("Content-Digest", "sha-256=:abc:")}, 400, "invalid_parameter"},
		"two checksums":            {"PUT", files + "/x", []edit{header("Content-Digest", digest("a")), header("X-Checksum-SHA256", hexSum("b"))}, 400, "invalid_parameter"},
		"unknown parameter":        {"PUT", files + "/x?overwrite=1", nil, 400, "invalid_parameter"},
		"range of another unit":    {"GET", files + "/there", []edit{header("Range", "lines=1-2")}, 416, "bad_range"},
		"range backwards":          {"GET", files + "/there", []edit{header("Range", "bytes=5-2")}, 416, "bad_range"},
		"range beyond":             {"GET", files + "/there", []edit{header("Range", "bytes=10-")}, 416, "bad_range"},
		"range of words":           {"GET", files + "/there", []edit{header("Range", "bytes=a-b")}, 416, "bad_range"},
		"a directory":              {"GET", files + "/there/", nil, 422, "file_name"},
		"a method that it has not": {"POST", files + "/there", nil, 405, "method_not_allowed"},
	} {
		body := any(nil)
		if c.method == "PUT" || c.method == "POST" {
			body = "x"
			c.edits = append([]edit{octets}, c.edits...)
		}
		r := f.do(c.method, c.path, body, c.edits...)
		require.Equal(t, c.status, r.StatusCode, "%s: %s", what, r.body)
		require.Equal(t, c.code, r.code(), what)
	}
	require.Equal(t, "0123456789", string(f.do("GET", files+"/there", nil).body), "nothing of this changed it")
	var list wire.JobFiles
	f.do("GET", files, nil).into(t, &list)
	require.Len(t, list.Files, 1)
}

func TestFiles_QuotaAndState(t *testing.T) {
	t.Parallel()
	f := setup(t)
	id, files := f.held()
	var list wire.JobFiles
	f.do("GET", files, nil).into(t, &list)
	answer := f.raw(fmt.Sprintf("PUT %s/big HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n",
		files, f.admin, list.LimitBytes+1))
	require.Contains(t, answer, "413 Request Entity Too Large", "told before the bytes are sent")
	require.Contains(t, answer, "file_quota")

	run, err := f.queue.Admit(t.Context(), jobs.ID(f.submit(map[string]any{"plugin": "textstats"})), "w")
	require.NoError(t, err)
	running := "/v1/jobs/" + string(run.Job().ID) + "/files"
	require.Equal(t, "state_conflict", f.do("PUT", running+"/x", "x", octets).code())
	dir, err := run.Dir()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "out.bin"), []byte("made"), 0o600))
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "passwd")))
	require.NoError(t, os.Symlink("/etc", filepath.Join(dir, "etc")))
	require.Equal(t, "state_conflict", f.do("DELETE", running+"/out.bin", nil).code())
	f.do("GET", running, nil).into(t, &list)
	require.Len(t, list.Files, 1)
	require.Empty(t, list.Files[0].Sha256, "it may still change")
	require.Equal(t, 2, list.Unlisted)
	for _, name := range []string{"/passwd", "/etc/passwd"} {
		r := f.do("GET", running+name, nil)
		require.Equal(t, 404, r.StatusCode)
		require.Equal(t, "file_not_found", r.code())
		require.NotContains(t, string(r.body), "root:")
	}
	_, err = run.Finish(t.Context(), jobs.Outcome{Status: jobs.Completed, Result: []byte(`1`)})
	require.NoError(t, err)
	f.do("GET", running+"?checksums=false", nil).into(t, &list)
	require.Empty(t, list.Files[0].Sha256)
	f.do("GET", running, nil).into(t, &list)
	require.Equal(t, hexSum("made"), list.Files[0].Sha256)
	require.Equal(t, "state_conflict", f.do("PUT", running+"/x", "x", octets).code())
	require.Equal(t, 204, f.do("DELETE", running+"/out.bin", nil).StatusCode, "room for others")

	_, other, err := f.tokens.Create("other", RoleSubmit, 0)
	require.NoError(t, err)
	require.Equal(t, "not_your_job", f.doTCP(other, "PUT", files+"/x", "x", octets).code())
	require.Equal(t, "not_your_job", f.doTCP(other, "DELETE", files+"/x", nil).code())
	_, reader, err := f.tokens.Create("reader", RoleRead, 0)
	require.NoError(t, err)
	require.Equal(t, 403, f.doTCP(reader, "PUT", files+"/x", "x", octets).StatusCode)
	require.Equal(t, 200, f.doTCP(reader, "GET", files, nil).StatusCode)
	require.Equal(t, 202, f.do("POST", "/v1/jobs/"+id+"/cancel", nil).StatusCode)
	require.Equal(t, "state_conflict", f.do("PUT", files+"/x", "x", octets).code())
}

// A client that dies half-way, or does not come on, leaves nothing.
func TestFiles_HalfAnUploadIsNone(t *testing.T) {
	t.Parallel()
	f := setup(t, func(o *Options) { o.BodyTimeout = 200 * time.Millisecond })
	_, files := f.held()
	send := func(body string, closeWrite bool) string {
		c, err := net.Dial("tcp", f.tcp.Listener.Addr().String())
		require.NoError(t, err)
		defer c.Close()
		_, err = fmt.Fprintf(c, "PUT %s/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nConnection: close\r\nContent-Length: 10\r\n\r\n%s", files, f.admin, body)
		require.NoError(t, err)
		if closeWrite {
			require.NoError(t, c.(*net.TCPConn).CloseWrite())
		}
		require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		answer, err := io.ReadAll(c)
		require.NoError(t, err)
		return string(answer)
	}
	require.Contains(t, send("half", true), "body_unreadable")
	require.Contains(t, send("half", false), "body_unreadable", "it stalls")
	require.Contains(t, send("the whole!", false), "201 Created")
	require.Equal(t, "the whole!", string(f.do("GET", files+"/x", nil).body))
}

// part is one of a multipart body; header lines follow the name.
type part struct {
	name, filename, body string
	header               textproto.MIMEHeader
}

func form(parts ...part) (string, edit) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range parts {
		h := p.header
		if h == nil {
			h = textproto.MIMEHeader{}
		}
		text := fmt.Sprintf("form-data; name=%q", p.name)
		if p.filename != "" {
			text += fmt.Sprintf("; filename=%q", p.filename)
		}
		h.Set("Content-Disposition", text)
		pw, _ := w.CreatePart(h)
		_, _ = io.WriteString(pw, p.body)
	}
	_ = w.Close()
	return b.String(), header("Content-Type", w.FormDataContentType())
}

func TestSubmit_WithItsFiles(t *testing.T) {
	t.Parallel()
	f := setup(t)
	job := `{"plugin":"textstats","kwargs":{"a":{"$file":"talk.txt"},"b":{"$file":"sub/more.txt"}},"hold":true}`
	body, kind := form(part{name: "file", filename: "talk.txt", body: "talk"}, part{name: "job", body: job},
		part{name: "sub/more.txt", filename: "ignored.txt", body: "more", header: textproto.MIMEHeader{"X-Checksum-Sha256": {hexSum("more")}}})
	r := f.do("POST", "/v1/jobs", body, kind, header("Idempotency-Key", "k1"))
	require.Equal(t, 202, r.StatusCode, "%s", r.body)
	var j wire.Job
	r.into(t, &j)
	var list wire.JobFiles
	f.do("GET", "/v1/jobs/"+j.Id+"/files", nil).into(t, &list)
	require.Len(t, list.Files, 2)
	require.Equal(t, "talk", string(f.do("GET", list.Files[1].Url, nil).body))

	again := f.do("POST", "/v1/jobs", body, kind, header("Idempotency-Key", "k1"))
	require.Equal(t, 200, again.StatusCode)
	other, kind2 := form(part{name: "job", body: job}, part{name: "talk.txt", body: "another talk"}, part{name: "sub/more.txt", body: "more"})
	require.Equal(t, "key_reused", f.do("POST", "/v1/jobs", other, kind2, header("Idempotency-Key", "k1")).code())
}

func TestSubmit_WithFilesRefused(t *testing.T) {
	t.Parallel()
	f := setup(t)
	good := part{name: "job", body: `{"plugin":"textstats"}`}
	file := part{name: "a.txt", body: "text"}
	for what, c := range map[string]struct {
		parts []part
		code  string
	}{
		"no job":           {[]part{file}, "invalid_multipart"},
		"two jobs":         {[]part{good, file, good}, "invalid_multipart"},
		"no JSON":          {[]part{{name: "job", body: "{"}, file}, "invalid_json"},
		"unknown field":    {[]part{file, {name: "job", body: `{"plugin":"textstats","prio":1}`}}, "invalid_body"},
		"unknown plugin":   {[]part{file, {name: "job", body: `{"plugin":"none"}`}}, "unknown_plugin"},
		"job too large":    {[]part{{name: "job", body: `{"plugin":"` + strings.Repeat("x", 2<<20) + `"}`}}, "body_too_large"},
		"file of no name":  {[]part{good, {name: "file", body: "x"}}, "file_name"},
		"part of no name":  {[]part{good, {name: "", body: "x"}}, "file_name"},
		"parent":           {[]part{good, {name: "../x", body: "x"}}, "file_name"},
		"parent, filename": {[]part{good, {name: "file", filename: "../x", body: "x"}}, "file_name"},
		"absolute":         {[]part{good, {name: "/etc/x", body: "x"}}, "file_name"},
		"twice":            {[]part{good, file, file}, "file_exists"},
		"checksum":         {[]part{good, {name: "x", body: "x", header: textproto.MIMEHeader{"X-Checksum-Sha256": {hexSum("y")}}}}, "checksum_mismatch"},
		"named, not there": {[]part{file, {name: "job", body: `{"plugin":"textstats","args":[{"$file":"b.txt"}]}`}}, "invalid_body"},
		"nothing":          {nil, "invalid_multipart"},
	} {
		body, kind := form(c.parts...)
		r := f.do("POST", "/v1/jobs", body, kind)
		require.Equal(t, c.code, r.code(), "%s: %s", what, r.body)
	}
	body, kind := form(good, file)
	require.Equal(t, "invalid_multipart", f.do("POST", "/v1/jobs", body[:len(body)-30], kind).code(), "cut short")
	require.Equal(t, "invalid_multipart", f.do("POST", "/v1/jobs", body, header("Content-Type", "multipart/form-data")).code(), "no boundary")
	require.Equal(t, "content_type", f.do("POST", "/v1/jobs:batch", body, kind).code())
	require.Equal(t, "invalid_parameter", f.do("POST", "/v1/jobs?wait=soon", body, kind).code())
	require.Equal(t, "invalid_body", f.do("POST", "/v1/plugins/textstats/execute", body, kind).code(), "the plugin is in the address")
	var page wire.JobPage
	f.do("GET", "/v1/jobs", nil).into(t, &page)
	require.Empty(t, page.Jobs)
	_, files := f.held()
	var list wire.JobFiles
	f.do("GET", files, nil).into(t, &list)
	dirs, err := filepath.Glob(filepath.Join(filepath.Dir(list.Dir), "[0-9a-f]*"))
	require.NoError(t, err)
	require.Empty(t, dirs, "nothing was kept")
}

// The deadline of a body must not end a wait that follows it.
func TestSubmit_WithFilesAndWait(t *testing.T) {
	t.Parallel()
	f := setup(t, func(o *Options) { o.BodyTimeout = 50 * time.Millisecond })
	file := part{name: "a.txt", body: "text"}
	body, kind := form(part{name: "job", body: `{"plugin":"textstats","hold":true}`}, file)
	require.Equal(t, 202, f.do("POST", "/v1/jobs?wait=300ms", body, kind).StatusCode)

	ran := make(chan struct{})
	go func() {
		defer close(ran)
		for range f.queue.Changed() {
			for _, g := range f.queue.Groups(1) {
				if len(g.Ready) > 0 {
					f.finish(f.run(string(g.Ready[0].ID)), `"done"`)
					return
				}
			}
		}
	}()
	body, kind = form(part{name: "job", body: `{"args":[{"$file":"a.txt"}]}`}, file)
	r := f.do("POST", "/v1/plugins/textstats/execute", body, kind)
	require.Equal(t, 200, r.StatusCode, "%s", r.body)
	require.Contains(t, string(r.body), `"value":"done"`)
	<-ran
	var page wire.JobPage
	f.do("GET", "/v1/jobs?status=completed", nil).into(t, &page)
	var list wire.JobFiles
	f.do("GET", "/v1/jobs/"+page.Jobs[0].Id+"/files", nil).into(t, &list)
	require.Len(t, list.Files, 1)
}

func TestResult_Unwrapped(t *testing.T) {
	t.Parallel()
	f := setup(t)
	for given, want := range map[string]string{
		`{"__wire__":"text","data":{"a":1.0}}`:  `{"a":1.0}`,
		`{"__wire__":"text","data":null}`:       `null`,
		`{"__wire__":"text","data":1,"more":2}`: `{"__wire__":"text","data":1,"more":2}`,
		`{"__wire__":1,"data":1}`:               `{"__wire__":1,"data":1}`,
		`[{"__wire__":"text","data":1}]`:        `[{"__wire__":"text","data":1}]`,
		`"__wire__"`:                            `"__wire__"`,
	} {
		run, err := f.queue.Admit(t.Context(), jobs.ID(f.submit(map[string]any{"plugin": "textstats"})), "w")
		require.NoError(t, err)
		_, err = run.Finish(t.Context(), jobs.Outcome{Status: jobs.Completed, Result: []byte(given)})
		require.NoError(t, err)
		at := "/v1/jobs/" + string(run.Job().ID) + "/result"
		require.Equal(t, given, string(f.do("GET", at, nil).body))
		r := f.do("GET", at+"?unwrap=true", nil)
		require.Equal(t, want, string(r.body))
		require.Equal(t, `"`+hexSum(want)+`"`, r.Header.Get("ETag"))
	}
}
