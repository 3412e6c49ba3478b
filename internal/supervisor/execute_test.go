package supervisor_test

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/supervisor"
)

func TestExecute_ReturnsTheResult(t *testing.T) {
	b := setup(t, nil)
	if _, err := b.Execute(t.Context(), "w", call("1", "echo"), newSink()); !errors.Is(err, supervisor.ErrNotLoaded) {
		t.Fatalf("before the start: %v", err)
	}
	b.ready()
	c := call("2", "chunks", 50)
	c.Stream = true
	s := newSink()
	res, err := b.Execute(t.Context(), "w", c, s)
	if err != nil || res.Chunks != 50 || s.chunks != 50 {
		t.Fatalf("got %+v, %v, %d chunks", res, err, s.chunks)
	}
	var ce *supervisor.CallError
	if _, err := b.Execute(t.Context(), "w", call("3", "error"), s); !errors.As(err, &ce) || ce.Category != "user_input" {
		t.Fatalf("got %v", err)
	}
	if err := b.Stop(t.Context(), "w", "test"); err != nil {
		t.Fatal(err)
	}
	want := []string{"stopped>starting", "starting>initializing", "initializing>ready", "ready>busy", "busy>ready", "ready>stopping", "stopping>killing", "killing>stopped"}
	got := b.journal.all()
	if len(got) < 6 || got[0] != want[0] || got[len(got)-1] != want[len(want)-1] {
		t.Errorf("journal: %v", got)
	}
	if st := b.status(); st.State != supervisor.Stopped || st.LastExit == nil || st.LastExit.Kind != supervisor.ExitOK || st.CallsTotal != 2 {
		t.Errorf("status %+v", st)
	}
}

func TestExecute_CancelPhases(t *testing.T) {
	for _, c := range []struct {
		obeys  string
		phases []supervisor.CancelMode
	}{
		{"cooperative", []supervisor.CancelMode{supervisor.CancelCooperative}},
		{"interrupt", []supervisor.CancelMode{supervisor.CancelCooperative, supervisor.CancelInterrupt}},
		{"never", []supervisor.CancelMode{supervisor.CancelCooperative, supervisor.CancelInterrupt, supervisor.CancelKill}},
	} {
		t.Run(c.obeys, func(t *testing.T) {
			b := setup(t, nil)
			b.worker("-ignore", "-fork", "3", "-setsid", "3")
			b.ready()
			ctx, cancel := context.WithCancel(t.Context())
			s := newSink()
			k := call("1", c.obeys)
			k.CancelGrace, k.InterruptGrace = 150*time.Millisecond, 100*time.Millisecond
			go func() {
				<-s.progress
				cancel()
			}()
			_, err := b.Execute(ctx, "w", k, s)
			var ce *supervisor.CallError
			if !errors.As(err, &ce) || !ce.Cancelled {
				t.Fatalf("got %v", err)
			}
			if !reflect.DeepEqual(s.phases, c.phases) {
				t.Errorf("phases %v, want %v", s.phases, c.phases)
			}
			killed := c.obeys == "never"
			if left := b.survivors(); killed && len(left) > 0 {
				t.Errorf("left behind when Execute returned: %v", left)
			}
			began := time.Now()
			b.ready() // at once: a kill of ours costs no back-off
			t.Logf("ready again after %v", time.Since(began))
			if gen := b.status().Generation; killed != (gen == 2) {
				t.Errorf("generation %d", gen)
			}
			if _, err := b.Execute(t.Context(), "w", call("2", "echo"), s); err != nil {
				t.Error(err)
			}
			b.set(func(s *supervisor.Spec) { s.StopGrace = 100 * time.Millisecond })
			if err := b.Kill(t.Context(), "w", "test"); err != nil {
				t.Error(err)
			}
		})
	}
}
