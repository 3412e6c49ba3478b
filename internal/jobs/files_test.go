package jobs_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/jobfiles"
)

func upload(body string) jobfiles.Upload {
	return jobfiles.Upload{Body: strings.NewReader(body), Size: int64(len(body))}
}

func (b *box) put(id jobs.ID, name, body string) {
	b.t.Helper()
	_, _, err := b.PutFile(b.ctx(), id, name, upload(body))
	require.NoError(b.t, err)
}

func (b *box) files(id jobs.ID) (out []string) {
	b.t.Helper()
	list, err := b.Files(b.ctx(), id, true)
	require.NoError(b.t, err)
	for _, f := range list.Files {
		out = append(out, f.Name)
	}
	return out
}

func (b *box) resolve(r *jobs.Run) jobs.Spec {
	b.t.Helper()
	j, err := r.Resolve(b.ctx())
	require.NoError(b.t, err)
	return j.Spec
}

func TestFiles_FromUploadToRetention(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *jobs.Options) { o.KeepJobs, o.KeepAge = 1, time.Nanosecond })
	id := b.submit(jobs.Spec{Held: true, Kwargs: json.RawMessage(`{"audio": {"$file": "in/talk.wav"}}`)}).ID
	b.put(id, "in/talk.wav", "sound")
	b.reopen() // what was acknowledged is there
	_, err := b.Release(b.ctx(), id)
	require.NoError(t, err)
	r := b.admit(id)
	dir, err := r.Dir()
	require.NoError(t, err)
	want, err := json.Marshal(map[string]string{"audio": filepath.Join(dir, "in/talk.wav")})
	require.NoError(t, err)
	require.JSONEq(t, string(want), string(b.resolve(r).Kwargs))

	var conflict *jobs.StateConflictError
	_, _, err = b.PutFile(b.ctx(), id, "late", upload("x"))
	require.ErrorAs(t, err, &conflict)
	require.ErrorAs(t, b.RemoveFile(b.ctx(), id, "in/talk.wav", ""), &conflict)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "out.txt"), []byte("text"), 0o600))
	b.finish(r, done)
	require.Equal(t, []string{"in/talk.wav", "out.txt"}, b.files(id))
	list, err := b.Files(b.ctx(), id, true)
	require.NoError(t, err)
	require.NotEmpty(t, list.Files[1].SHA256)
	_, _, err = b.PutFile(b.ctx(), id, "late", upload("x"))
	require.ErrorAs(t, err, &conflict)
	require.NoError(t, b.RemoveFile(b.ctx(), id, "out.txt", ""))

	b.finish(b.admit(b.submit(jobs.Spec{}).ID), done) // the one that is kept
	b.advance(time.Hour)
	require.NoError(t, b.Prune(b.ctx()))
	require.NoDirExists(t, dir)
	_, err = b.Files(b.ctx(), id, false)
	require.ErrorIs(t, err, jobs.ErrNotFound)
	_, _, err = b.OpenFile(b.ctx(), id, "out.txt")
	require.ErrorIs(t, err, jobs.ErrNotFound)
	_, _, err = b.PutFile(b.ctx(), id, "x", upload("x"))
	require.ErrorIs(t, err, jobs.ErrNotFound)
}

func TestFiles_AnEmptyDirectoryGoesWithTheAttempt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.admit(b.submit(jobs.Spec{}).ID)
	dir, err := r.Dir()
	require.NoError(t, err)
	require.DirExists(t, dir)
	b.finish(r, jobs.Outcome{Status: jobs.Pending, Unspent: true})
	require.NoDirExists(t, dir)
}

// The job cannot start between the last byte and the moment in which the file is
// there.
func TestFiles_NoStartAmidAnUpload(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.submit(jobs.Spec{}).ID
	body, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, _, err := b.PutFile(context.Background(), id, "x", jobfiles.Upload{Body: body, Size: -1})
		ended <- err
	}()
	_, err := w.Write([]byte("half"))
	require.NoError(t, err)
	r := b.admit(id) // it does not wait for what nobody promised
	require.NoError(t, w.Close())
	var conflict *jobs.StateConflictError
	require.ErrorAs(t, <-ended, &conflict)
	dir, err := r.Dir()
	require.NoError(t, err)
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, list)
	b.finish(r, done)
}

func TestStage_FilesComeWithTheJob(t *testing.T) {
	t.Parallel()
	b := setup(t)
	submit := func(key, body, args string) (jobs.Submitted, error) {
		s, err := b.NewStage()
		require.NoError(t, err)
		defer func() { require.NoError(t, s.Settle(b.ctx())) }()
		require.NoError(t, s.Put("in.txt", upload(body)))
		var twice *jobfiles.ConditionError
		require.ErrorAs(t, s.Put("in.txt", upload(body)), &twice)
		out, err := b.Submit(b.ctx(), []jobs.Submission{{IdempotencyKey: key, Submitter: "ann", Stage: s,
			Spec: jobs.Spec{Instance: "echo", Args: json.RawMessage(args)}}})
		if err != nil {
			return jobs.Submitted{}, err
		}
		return out[0], nil
	}
	first, err := submit("k", "one", `[{"$file": "in.txt"}]`)
	require.NoError(t, err)
	require.Equal(t, []string{"in.txt"}, b.files(first.Job.ID))
	again, err := submit("k", "one", `[{"$file": "in.txt"}]`)
	require.NoError(t, err)
	require.Equal(t, first.Job.ID, again.Job.ID)
	require.False(t, again.Created)
	var idem *jobs.IdempotencyError
	_, err = submit("k", "two", `[{"$file": "in.txt"}]`)
	require.ErrorAs(t, err, &idem, "another file is another body")
	var invalid *jobs.InvalidError
	_, err = submit("", "one", `[{"$file": "other.txt"}]`)
	require.ErrorAs(t, err, &invalid)
	require.Contains(t, invalid.Message, `"other.txt", which did not come`)
	dirs, err := filepath.Glob(filepath.Join(b.dir, "jobs", "[0-9a-f]*"))
	require.NoError(t, err)
	require.Len(t, dirs, 1, "what has no job has no directory: %v", dirs)
}

// A process that dies between the files and the job leaves neither; one that dies
// after the job leaves both.
func TestStage_ACrashLeavesBothOrNeither(t *testing.T) {
	t.Parallel()
	b := setup(t)
	lost, err := b.NewStage()
	require.NoError(t, err)
	require.NoError(t, lost.Put("in.txt", upload("lost")))
	kept, err := b.NewStage()
	require.NoError(t, err)
	require.NoError(t, kept.Put("in.txt", upload("kept")))
	out, err := b.Submit(b.ctx(), []jobs.Submission{{Spec: jobs.Spec{Instance: "echo"}, Stage: kept}})
	require.NoError(t, err)
	b.reopen() // neither was settled
	require.Equal(t, []string{"in.txt"}, b.files(out[0].Job.ID))
	dirs, err := filepath.Glob(filepath.Join(b.dir, "jobs", "[0-9a-f]*"))
	require.NoError(t, err)
	require.Len(t, dirs, 1)
	marks, err := filepath.Glob(filepath.Join(b.dir, "jobs", ".marks", "*"))
	require.NoError(t, err)
	require.Empty(t, marks)
}

func TestRetry_TakesTheUploadedFilesAlong(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.submit(jobs.Spec{Held: true, Args: json.RawMessage(`[{"$file": "in.txt"}]`)}).ID
	b.put(id, "in.txt", "text")
	_, err := b.Release(b.ctx(), id)
	require.NoError(t, err)
	b.advance(time.Minute) // later than what was uploaded, whatever the kernel's clock rounds to
	r := b.admit(id)
	dir, err := r.Dir()
	require.NoError(t, err)
	out := filepath.Join(dir, "out.txt")
	require.NoError(t, os.WriteFile(out, []byte("half"), 0o600))
	require.NoError(t, os.Chtimes(out, b.clock(), b.clock().Add(time.Second)))
	b.finish(r, jobs.Outcome{Status: jobs.Failed, Error: &jobs.Error{Category: jobs.Fatal, Message: "x"}})
	again, err := b.Retry(b.ctx(), id, "ann")
	require.NoError(t, err)
	require.Equal(t, []string{"in.txt"}, b.files(again.ID))
	r = b.admit(again.ID)
	require.Contains(t, string(b.resolve(r).Args), again.ID.FileName())
	b.finish(r, done)
	require.NoError(t, b.RemoveFile(b.ctx(), again.ID, "in.txt", ""))
	_, err = b.Retry(b.ctx(), again.ID, "ann")
	require.NoError(t, err, "nothing to take along")
}

func TestRefs_AreFilledInAndEverythingElseStays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.submit(jobs.Spec{}).ID
	r := b.admit(a)
	dir, err := r.Dir()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "é out.wav"), nil, 0o600))
	b.finish(r, jobs.Outcome{Status: jobs.Completed, Result: []byte(`{"a/b": {"~": [1.50, {"z":1,"a":2}]}, "big": 123456789012345678901234567890}`)})
	path := func(name string) string {
		s, err := json.Marshal(filepath.Join(dir, name))
		require.NoError(t, err)
		return string(s)
	}
	for _, c := range [][2]string{
		{`[{"$result":"A","path":"/a~1b/~0/0"}]`, `[1.50]`},
		{`[ {"path":"/a~1b/~0/1","$result":"A"} , 1.0]`, `[ {"z":1,"a":2} , 1.0]`},
		{`[{"$result":"A","path":"/big"},{"$result":"A","path":"/a~1b/~0/1/a"}]`, `[123456789012345678901234567890,2]`},
		{`[{"$file":"é out.wav","job":"A"}]`, `[` + path("é out.wav") + `]`},
		{`[{"\u0024file":"é out.wav","job":"A"}]`, `[` + path("é out.wav") + `]`},
		{`[{"$literal":{"$result":"x","more":[{"$file":1}]}}]`, `[{"$result":"x","more":[{"$file":1}]}]`},
		{`[{"$literal":{"$literal":null}},{"$literal":null}]`, `[{"$literal":null},null]`},
		{`[{"deep":[{"b":{"$result":"A","path":"/a~1b/~0/0"},"a":"<&>"}]}]`, `[{"deep":[{"b":1.50,"a":"<&>"}]}]`},
		{`["$result",{"x":"$file"},{"$other":1}]`, `["$result",{"x":"$file"},{"$other":1}]`},
	} {
		job := b.submit(jobs.Spec{DependsOn: []jobs.ID{a}, Args: json.RawMessage(strings.ReplaceAll(c[0], `"A"`, fmt.Sprintf("%q", a)))})
		r := b.admit(job.ID)
		require.Equal(t, c[1], string(b.resolve(r).Args), c[0])
		b.finish(r, done)
	}
}

func TestRefs_Refused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.submit(jobs.Spec{}).ID
	for args, want := range map[string]string{
		`[{"$result":"A","extra":1}]`:              "a reference is",
		`[{"$result":1}]`:                          "a reference is",
		`[{"$result":null}]`:                       "a reference is",
		`[{"$result":""}]`:                         "a reference is",
		`[{"$result":"A","path":"a"}]`:             "a reference is",
		`[{"$result":"A","path":"/~2"}]`:           "a reference is",
		`[{"$result":"A","path":null}]`:            "a reference is",
		`[{"$result":{"$result":"A"}}]`:            "a reference is",
		`[{"$result":"A","$file":"x"}]`:            "a reference is",
		`[{"$literal":1,"x":2}]`:                   "a reference is",
		`[{"$file":"x","job":""}]`:                 "a reference is",
		`[{"$file":"x","path":"/a"}]`:              "a reference is",
		`[{"$file":"../x"}]`:                       `the name of the file has the element ".."`,
		`[{"$file":"/etc/passwd"}]`:                "begins with a slash",
		`[{"$file":"a\u0000"}]`:                    "U+0000",
		`[{"$file":""}]`:                           "is empty",
		`[{"$file":"x","job":"other"}]`:            "refers to a file of other, which is not in depends_on",
		`[{"$result":"other"}]`:                    "refers to the result of other, which is not in depends_on",
		`[{"a":{"b":[{"$result":"A","p":"/x"}]}}]`: "a reference is",
	} {
		_, err := b.Submit(b.ctx(), []jobs.Submission{{Spec: jobs.Spec{Instance: "e", DependsOn: []jobs.ID{a},
			Args: json.RawMessage(strings.ReplaceAll(args, `"A"`, fmt.Sprintf("%q", a)))}}})
		var invalid *jobs.InvalidError
		require.ErrorAs(t, err, &invalid, args)
		require.Equal(t, "args", invalid.Field)
		require.Contains(t, invalid.Message, want, args)
	}
	_, err := b.Submit(b.ctx(), []jobs.Submission{{ID: "self", Spec: jobs.Spec{Instance: "e", DependsOn: []jobs.ID{"self"}}}})
	require.ErrorContains(t, err, "is the job itself")
}

func TestRefs_ThatLeadNowhereNameThePlace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.submit(jobs.Spec{}).ID
	b.finish(b.admit(a), done) // {"a":[1,2]}
	failed := b.submit(jobs.Spec{MaxAttempts: 1}).ID
	b.finish(b.admit(failed), jobs.Outcome{Status: jobs.Failed, Error: &jobs.Error{Category: jobs.Fatal, Message: "x"}})
	text := b.submit(jobs.Spec{}).ID
	b.finish(b.admit(text), jobs.Outcome{Status: jobs.Completed, Result: []byte("plain"), ContentType: "text/plain"})
	for args, want := range map[string]string{
		`[{"$result":"A","path":"/a/2"}]`:   `result of job A: path /a/2: no element "2"`,
		`[{"$result":"A","path":"/a/01"}]`:  `no element "01"`,
		`[{"$result":"A","path":"/a/-"}]`:   `no element "-"`,
		`[{"$result":"A","path":"/a/0/x"}]`: `nothing below "x"`,
		`[{"$result":"A","path":"/"}]`:      `no member ""`,
		`[{"$result":"F"}]`:                 `job F has no result`,
		`[{"$result":"T"}]`:                 `the result of job T is not JSON`,
		`[{"$file":"no.wav"}]`:              `the job has no file "no.wav"`,
		`[{"$file":"no.wav","job":"A"}]`:    `job A has no file "no.wav"`,
		`[{"$file":"no/no.wav","job":"A"}]`: `job A has no file "no/no.wav"`,
	} {
		for short, id := range map[string]jobs.ID{"A": a, "F": failed, "T": text} {
			args = strings.ReplaceAll(args, `"`+short+`"`, fmt.Sprintf("%q", id))
			want = strings.ReplaceAll(want, "job "+short+" ", "job "+string(id)+" ")
			want = strings.ReplaceAll(want, "job "+short+":", "job "+string(id)+":")
		}
		r := b.admit(b.submit(jobs.Spec{DependsOn: []jobs.ID{a, failed, text}, RunOnDepFail: true, Args: json.RawMessage(args)}).ID)
		_, err := r.Resolve(b.ctx())
		var ref *jobs.RefError
		require.ErrorAs(t, err, &ref, args)
		require.ErrorContains(t, err, want)
		b.finish(r, done)
	}
}

func TestRefs_LargeResultsComeFromTheirFiles(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.submit(jobs.Spec{}).ID
	long := strings.Repeat("x", 3<<20)
	b.finish(b.admit(a), jobs.Outcome{Status: jobs.Completed, Result: []byte(`{"text":"` + long + `"}`)})
	ref := fmt.Sprintf(`{"$result":%q,"path":"/text"}`, a)
	r := b.admit(b.submit(jobs.Spec{DependsOn: []jobs.ID{a}, Args: json.RawMessage("[" + ref + "]")}).ID)
	require.Len(t, b.resolve(r).Args, len(long)+4)
	b.finish(r, done)
	many := "[" + strings.Repeat(ref+",", 30) + "1]" // more than may be filled in
	r = b.admit(b.submit(jobs.Spec{DependsOn: []jobs.ID{a}, Args: json.RawMessage(many)}).ID)
	_, err := r.Resolve(b.ctx())
	var bad *jobs.RefError
	require.ErrorAs(t, err, &bad)
	require.ErrorContains(t, err, "larger than 64 MiB")
	b.finish(r, done)
}

// A dependency that goes between the look at it and the insert refuses the job:
// what it refers to would be gone.
func TestSubmit_ADependencyThatIsPrunedMeanwhile(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *jobs.Options) { o.KeepJobs, o.KeepAge = 1, time.Nanosecond })
	a := b.submit(jobs.Spec{}).ID
	b.finish(b.admit(a), done)
	b.finish(b.admit(b.submit(jobs.Spec{}).ID), done)
	b.close()
	b.wrap = func(s jobs.Store) jobs.Store { return prunesFirst{s, b} }
	b.open()
	b.advance(time.Hour)
	_, err := b.Submit(b.ctx(), []jobs.Submission{{Spec: jobs.Spec{Instance: "e", DependsOn: []jobs.ID{a}}}})
	var invalid *jobs.InvalidError
	require.ErrorAs(t, err, &invalid)
	require.Equal(t, "depends_on/0", invalid.Field)
}

// prunesFirst is a store where retention comes between a look and an insert.
type prunesFirst struct {
	jobs.Store
	b *box
}

func (p prunesFirst) GetMany(ctx context.Context, ids []jobs.ID) ([]jobs.Job, error) {
	found, err := p.Store.GetMany(ctx, ids)
	_, pruneErr := p.Prune(ctx, 1, p.b.clock(), 10)
	return found, errors.Join(err, pruneErr)
}
