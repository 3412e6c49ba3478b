package supervisor_test

import (
	"context"
	"encoding/json"
	"strconv"
	"testing"

	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/basic"
	"github.com/cjmd/cjmd/internal/isolation/tree"
	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc"
)

// BenchmarkExecute is one call on a real worker through the supervisor; the
// transport's own benchmark shows what of it is the supervisor's.
func BenchmarkExecute(b *testing.B) {
	host, err := tree.New(tree.Options{StateDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer host.Close()
	s, stop := benchSupervisor(b, host)
	defer stop()
	if err := s.EnsureReady(b.Context(), "w"); err != nil {
		b.Fatal(err)
	}
	sink := newSink()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c := supervisor.Call{ID: strconv.Itoa(i), Args: json.RawMessage(`["echo"]`), Kwargs: json.RawMessage(`{}`)}
		if _, err := s.Execute(b.Context(), "w", c, sink); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStart is a start to readiness and a stop, in whole.
func BenchmarkStart(b *testing.B) {
	host, err := tree.New(tree.Options{StateDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer host.Close()
	s, stop := benchSupervisor(b, host)
	defer stop()
	for b.Loop() {
		if err := s.EnsureReady(b.Context(), "w"); err != nil {
			b.Fatal(err)
		}
		if err := s.Stop(b.Context(), "w", "bench"); err != nil {
			b.Fatal(err)
		}
	}
}

func benchSupervisor(b *testing.B, host *tree.Host) (s *supervisor.Supervisor, stop func()) {
	b.Helper()
	s, err := supervisor.New(supervisor.Options{
		Catalog: fixedCatalog{
			Instance: "w", Plugin: "bench", Transport: "native", Command: []string{testWorker}, Dir: b.TempDir(), Env: []string{},
			Hello: supervisor.Hello{Instance: "w", Plugin: "bench", Config: json.RawMessage(`{}`), Concurrent: 1},
		},
		Transports: []supervisor.Transport{rpc.New(rpc.Options{})}, Tiers: []isolation.Tier{basic.New(host)},
		LogRoot: b.TempDir(), Log: zap.NewNop(),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return s, func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
}
