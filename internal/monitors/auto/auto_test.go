package auto_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/auto"
	"github.com/cjmd/cjmd/internal/monitors/monitortest"
	"github.com/cjmd/cjmd/internal/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a candidate that gives readings while err is nil.
type fake struct {
	name  string
	every time.Duration

	mu     sync.Mutex
	err    error // what Run and Probe say
	runs   int
	probes int
	panics bool
}

func (f *fake) Name() string { return f.name }

func (f *fake) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fake) says() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.panics {
		panic("driver")
	}
	return f.err
}

func (f *fake) Probe(context.Context) error {
	f.mu.Lock()
	f.probes++
	f.mu.Unlock()
	return f.says()
}

func (f *fake) Run(ctx context.Context, out chan<- resource.Snapshot) error {
	f.mu.Lock()
	f.runs++
	f.mu.Unlock()
	for {
		if err := f.says(); err != nil {
			return err
		}
		s := resource.Snapshot{At: time.Now(), Monitor: f.name, GPUVendor: "None", Details: map[string]any{"own": f.name},
			Host: resource.Host{CPUs: 1, MemTotal: resource.MiB, MemAvailable: resource.MiB}}
		select {
		case out <- s:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-time.After(f.every):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

var errMissing = fmt.Errorf("no driver: %w", monitors.ErrUnsupported)

func trio() (gpu, other, cpu *fake) {
	return &fake{name: "gpu", every: time.Second}, &fake{name: "other", every: time.Second}, &fake{name: "cpu", every: time.Second}
}

type box struct {
	t     *testing.T
	out   chan resource.Snapshot
	ended chan error
}

// inBubble runs a monitor over candidates in virtual time.
func inBubble(t *testing.T, f func(b *box), cs ...monitors.Monitor) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m, err := auto.New(auto.Options{Candidates: cs})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		b := &box{t: t, out: make(chan resource.Snapshot), ended: make(chan error, 1)}
		go func() { b.ended <- m.Run(ctx, b.out) }()
		f(b)
		cancel()
		<-b.ended
	})
}

// next is the name of the candidate that the next snapshot is of.
func (b *box) next() (resource.Snapshot, string) {
	b.t.Helper()
	select {
	case s := <-b.out:
		if s.Monitor != "auto" {
			b.t.Errorf("snapshot is signed %q", s.Monitor)
		}
		return s, s.Details["monitor"].(string)
	case err := <-b.ended:
		b.ended <- err
		b.t.Fatalf("Run ended with %v", err)
		return resource.Snapshot{}, ""
	}
}

func (b *box) end() error {
	b.t.Helper()
	for {
		select {
		case <-b.out:
		case err := <-b.ended:
			b.ended <- err
			return err
		}
	}
}

func TestAuto_Conforms(t *testing.T) {
	monitortest.Run(t, func(t *testing.T) monitors.Monitor {
		m, err := auto.New(auto.Options{Candidates: []monitors.Monitor{
			&fake{name: "gpu", err: errMissing}, &fake{name: "cpu", every: time.Millisecond}}})
		if err != nil {
			t.Fatal(err)
		}
		return m
	})
}

func TestAuto_TakesTheFirstThatWorks(t *testing.T) {
	gpu, other, cpu := trio()
	gpu.err = errMissing
	inBubble(t, func(b *box) {
		s, by := b.next()
		if by != "other" || s.Details["own"] != "other" {
			t.Errorf("details %v", s.Details)
		}
		if why := s.Details["not_used"].(map[string]string); len(why) != 1 || !strings.Contains(why["gpu"], "no driver") {
			t.Errorf("nothing says why gpu is not in use: %v", s.Details)
		}
		if cpu.runs != 0 {
			t.Error("a later candidate was tried though an earlier one works")
		}
	}, gpu, other, cpu)
}

func TestAuto_ChangesOverWhenABetterOneAppears(t *testing.T) {
	gpu, other, cpu := trio()
	gpu.err, other.err = errMissing, errMissing
	inBubble(t, func(b *box) {
		for range 65 {
			if _, by := b.next(); by != "cpu" {
				t.Fatalf("reading of %s", by)
			}
		}
		gpu.mu.Lock()
		if gpu.probes != 1 {
			t.Errorf("looked for a better one %d times in a minute", gpu.probes)
		}
		gpu.mu.Unlock()
		gpu.set(nil)
		for range 70 {
			if s, by := b.next(); by == "gpu" {
				if s.Details["not_used"] != nil {
					t.Errorf("details %v", s.Details)
				}
				return
			}
		}
		t.Error("never changed over")
	}, gpu, other, cpu)
}

func TestAuto_AFailureIsNoReasonForALesserOne(t *testing.T) {
	gpu, other, cpu := trio()
	inBubble(t, func(b *box) {
		b.next()
		gpu.set(errors.New("GPU is lost"))
		if err := b.end(); err == nil || err.Error() != "GPU is lost" {
			t.Errorf("error %v", err)
		}
	}, gpu, other, cpu)

	gpu.set(nil)
	inBubble(t, func(b *box) {
		b.next()
		gpu.set(errMissing)
		if err := b.end(); err == nil || errors.Is(err, monitors.ErrUnsupported) || !strings.Contains(err.Error(), "worked before") {
			t.Errorf("error %v", err)
		}
	}, gpu, other, cpu)

	gpu.set(nil)
	gpu.panics = true
	inBubble(t, func(b *box) {
		if err := b.end(); err == nil || !strings.Contains(err.Error(), `"gpu" panicked: driver`) {
			t.Errorf("error %v", err)
		}
	}, gpu)
	if cpu.runs != 0 {
		t.Error("went on with a lesser monitor")
	}
}

func TestAuto_WithoutAnyIsUnsupported(t *testing.T) {
	gpu, other, _ := trio()
	gpu.err, other.err = errMissing, errMissing
	inBubble(t, func(b *box) {
		if err := b.end(); !errors.Is(err, monitors.ErrUnsupported) || strings.Count(err.Error(), "no driver") != 2 {
			t.Errorf("error %v", err)
		}
	}, gpu, other)
	if _, err := auto.New(auto.Options{}); err == nil {
		t.Error("a choice among none was accepted")
	}
}

func TestAuto_ConstructorMakesItsCandidates(t *testing.T) {
	gpu, _, _ := trio()
	c := auto.Constructor(monitors.Constructor{Name: "gpu", New: func(*monitors.Pace) (monitors.Monitor, error) { return gpu, nil }})
	if m, err := c.New(monitors.NewPace(0, 0)); err != nil || m.Name() != "auto" || c.Name != "auto" {
		t.Errorf("made %v, %v", m, err)
	}
	c = auto.Constructor(monitors.Constructor{Name: "gpu", New: func(*monitors.Pace) (monitors.Monitor, error) { return nil, errMissing }})
	if _, err := c.New(nil); !errors.Is(err, errMissing) {
		t.Errorf("error %v", err)
	}
}
