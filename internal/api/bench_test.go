package api

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	apispec "github.com/cjmd/cjmd/api"
	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/joblog"
	"github.com/cjmd/cjmd/internal/plugins"
)

// instantJobs answers at once, so that what is measured is the API.
type instantJobs struct {
	Jobs
	log *endlessLog
}

func (j instantJobs) Submit(_ context.Context, subs []jobs.Submission) ([]jobs.Submitted, error) {
	out := make([]jobs.Submitted, len(subs))
	for i, s := range subs {
		out[i] = jobs.Submitted{Created: true, Job: jobs.Job{ID: "01J", Spec: s.Spec, Status: jobs.Pending, Phase: jobs.Queued, Revision: 1, CreatedAt: time.Now(), Submitter: s.Submitter}}
	}
	return out, nil
}

func (j instantJobs) Get(context.Context, jobs.ID) (jobs.Job, error) {
	return jobs.Job{ID: "01J", Status: jobs.Completed}, nil
}

func (j instantJobs) Log(context.Context, jobs.ID, uint64) (JobLog, error) {
	return &endlessLog{left: j.log.left}, nil
}

// endlessLog gives left chunks as fast as they are asked for.
type endlessLog struct {
	n, left uint64
}

func (l *endlessLog) Next(context.Context) (joblog.Record, error) {
	if l.n == l.left {
		return joblog.Record{}, io.EOF
	}
	l.n++
	return joblog.Record{N: l.n, Kind: joblog.KindChunk, Data: []byte(`{"text":"a partial result of about fifty bytes or so"}`)}, nil
}
func (l *endlessLog) Newest() uint64 { return l.left }
func (l *endlessLog) Close() error   { return nil }

func benchHandler(b *testing.B, chunks uint64) http.Handler {
	b.Helper()
	tokens, err := OpenTokens(b.TempDir(), nil)
	if err != nil {
		b.Fatal(err)
	}
	hub := events.NewHub(events.Options{})
	f := &fixture{plugins: newFakePlugins()}
	h, err := NewHandler(Options{Jobs: instantJobs{log: &endlessLog{left: chunks}}, Lifecycle: &fakeLifecycle{f: f}, Ledger: &fakeLedger{}, Plugins: f.plugins, Secrets: plugins.NewSecrets(b.TempDir()), Workers: &fakeWorkers{},
		Machine: newFakeMachine(), Feed: hub, Tokens: tokens, Log: zap.NewNop(), Access: AccessOptions{AdminUIDs: []uint32{uint32(os.Getuid())}}})
	if err != nil {
		b.Fatal(err)
	}
	return h
}

const benchBody = `{"plugin":"textstats","args":["the quick brown fox jumps over the lazy dog"],"kwargs":{"mode":"a"},"priority":3,"labels":{"batch":"7"}}`

// BenchmarkSubmit_Handler is everything between the bytes of a request and the
// queue, without a socket.
func BenchmarkSubmit_Handler(b *testing.B) {
	h := benchHandler(b, 0)
	ctx := context.WithValue(b.Context(), keyPeer, peer{uid: uint32(os.Getuid())})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := httptest.NewRequest("POST", "/v1/jobs", strings.NewReader(benchBody)).WithContext(ctx)
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != 202 {
				b.Fatal(w.Body.String())
			}
		}
	})
}

func BenchmarkVerify_Submit(b *testing.B) {
	sp, err := loadSpec(apispec.Spec)
	if err != nil {
		b.Fatal(err)
	}
	bo := newBodies(sp, DefaultLimits, time.Second)
	b.ReportAllocs()
	for b.Loop() {
		if err := bo.verify(sp.rules["submitJob"], []byte(benchBody)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStream_OneReader is the framer and the socket: b.N chunks to one
// client over loopback TCP.
func BenchmarkStream_OneReader(b *testing.B) {
	h := benchHandler(b, uint64(b.N))
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), keyPeer, peer{uid: uint32(os.Getuid())})))
	}))
	srv.Start()
	defer srv.Close()
	b.ResetTimer()
	resp, err := srv.Client().Get(srv.URL + "/v1/jobs/01J/stream")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	n, sc := 0, bufio.NewReaderSize(resp.Body, 64<<10)
	for {
		line, err := sc.ReadSlice('\n')
		if bytes.HasPrefix(line, []byte("data: {\"text")) {
			n++
		}
		if err != nil {
			break
		}
	}
	if n != b.N {
		b.Fatal(fmt.Errorf("%d of %d chunks came", n, b.N))
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkSubmit_Durable is the whole way of a submit: Unix socket, API, queue,
// commit on disk, 64 clients at once.
func BenchmarkSubmit_Durable(b *testing.B) {
	f := setup(b)
	tr, _ := f.socket.Transport.(*http.Transport)
	tr.MaxIdleConnsPerHost = 64
	b.SetParallelism(32)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := f.socket.Post("http://localhost/v1/jobs", "application/json", strings.NewReader(benchBody))
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != 202 {
				b.Error(resp.Status)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
}

// BenchmarkBatch_Durable submits 500 jobs at a time.
func BenchmarkBatch_Durable(b *testing.B) {
	f := setup(b)
	const size = 500
	body := `{"jobs":[` + strings.Repeat(benchBody+",", size-1) + benchBody + `]}`
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := f.socket.Post("http://localhost/v1/jobs:batch", "application/json", strings.NewReader(body))
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != 202 {
				b.Error(resp.Status)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "jobs/s")
}
