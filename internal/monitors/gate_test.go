package monitors_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/resource"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted is a monitor that does what the test sends it.
type scripted struct {
	name string
	pace *monitors.Pace

	mu   sync.Mutex
	runs int
	// run is called for each Run, with its number from 1.
	run func(ctx context.Context, n int, out chan<- resource.Snapshot) error
}

func (s *scripted) Name() string { return s.name }

func (s *scripted) Run(ctx context.Context, out chan<- resource.Snapshot) error {
	s.mu.Lock()
	s.runs++
	n := s.runs
	s.mu.Unlock()
	return s.run(ctx, n, out)
}

// steady samples at its pace for ever.
func (s *scripted) steady(ctx context.Context, _ int, out chan<- resource.Snapshot) error {
	for {
		if err := send(ctx, out, s.name); err != nil {
			return err
		}
		if err := s.pace.Wait(ctx); err != nil {
			return err
		}
	}
}

func send(ctx context.Context, out chan<- resource.Snapshot, name string) error {
	select {
	case out <- resource.Snapshot{At: time.Now(), Monitor: name, Host: resource.Host{CPUs: 1, MemTotal: resource.MiB}}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// journal remembers the states that were told.
type journal struct {
	mu   sync.Mutex
	told []string
}

func (j *journal) Record(_ context.Context, ds ...events.Draft) ([]events.Event, error) {
	j.Emit(ds...)
	return nil, nil
}

func (j *journal) Emit(ds ...events.Draft) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, d := range ds {
		m := d.Data.(map[string]string)
		j.told = append(j.told, m["monitor"]+":"+m["state"])
	}
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return fmt.Sprint(j.told)
}

type gateBox struct {
	*monitors.Gate
	t       *testing.T
	journal *journal
	pace    *monitors.Pace
	stop    func() error
}

// inBubble runs f with a running gate in virtual time.
func inBubble(t *testing.T, f func(b *gateBox), cs ...monitors.Constructor) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &gateBox{t: t, journal: &journal{}, pace: monitors.NewPace(0, 0)}
		g, err := monitors.New(monitors.Options{Pace: b.pace, Journal: b.journal, Constructors: cs})
		if err != nil {
			t.Fatal(err)
		}
		b.Gate = g
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- g.Run(ctx) }()
		b.stop = sync.OnceValue(func() error { cancel(); return <-ended })
		f(b)
		if err := b.stop(); err != nil {
			t.Errorf("Run ended with %v", err)
		}
	})
}

func (b *gateBox) register(m monitors.Monitor) {
	b.t.Helper()
	if err := b.Register(b.t.Context(), m); err != nil {
		b.t.Fatal(err)
	}
	synctest.Wait()
}

func (b *gateBox) wantFresh(want bool, state string) {
	b.t.Helper()
	synctest.Wait()
	if _, fresh := b.Latest(); fresh != want {
		b.t.Errorf("fresh is %v, want %v", fresh, want)
	}
	if st := b.State(); len(st) != 1 || st[0].State != state {
		b.t.Errorf("state %+v, want %s", st, state)
	}
}

func TestGate_WithoutAMonitorNothingIsFresh(t *testing.T) {
	inBubble(t, func(b *gateBox) {
		if _, fresh := b.Latest(); fresh || b.Registered() != "" || len(b.State()) != 0 {
			t.Error("a gate without monitor has facts")
		}
	})
}

func TestGate_HoldsTheNewestReading(t *testing.T) {
	inBubble(t, func(b *gateBox) {
		m := &scripted{name: "m", pace: b.pace}
		m.run = m.steady
		b.register(m)
		b.wantFresh(true, monitors.StateFresh)
		first, _ := b.Latest()
		time.Sleep(time.Minute)
		b.wantFresh(true, monitors.StateFresh)
		if s, _ := b.Latest(); s.At.Sub(first.At) < 50*time.Second {
			t.Errorf("reading is of %v", s.At)
		}
		if got := b.journal.String(); got != "[m:registered m:fresh]" {
			t.Errorf("journal %s", got)
		}
		if m.runs != 1 {
			t.Errorf("the monitor was run %d times", m.runs)
		}
	})
}

func TestGate_SamplesFastWhileActiveAndAtOnceWhenItBecomesSo(t *testing.T) {
	inBubble(t, func(b *gateBox) {
		m := &scripted{name: "m", pace: b.pace}
		m.run = m.steady
		b.register(m)
		time.Sleep(monitors.IdleInterval / 2)
		b.SetActive(true)
		synctest.Wait()
		if s, _ := b.Latest(); time.Since(s.At) != 0 {
			t.Errorf("reading is %v old right after SetActive", time.Since(s.At))
		}
		time.Sleep(monitors.FastInterval)
		synctest.Wait()
		if s, _ := b.Latest(); time.Since(s.At) > monitors.FastInterval/2 {
			t.Errorf("reading is %v old", time.Since(s.At))
		}
		b.SetActive(false)
		time.Sleep(monitors.FastInterval) // the one that was due
		synctest.Wait()
		before, _ := b.Latest()
		time.Sleep(monitors.IdleInterval - time.Millisecond)
		synctest.Wait()
		if after, _ := b.Latest(); after.At != before.At {
			t.Error("an idle gate still samples fast")
		}
	})
}

func TestGate_AHangingMonitorIsStaleThenRestarted(t *testing.T) {
	inBubble(t, func(b *gateBox) {
		m := &scripted{name: "m", pace: b.pace}
		m.run = func(ctx context.Context, n int, out chan<- resource.Snapshot) error {
			if n > 1 {
				return m.steady(ctx, n, out)
			}
			if err := send(ctx, out, "m"); err != nil {
				return err
			}
			<-ctx.Done() // hangs
			return ctx.Err()
		}
		b.register(m)
		b.wantFresh(true, monitors.StateFresh)
		drain(b.Changed())
		time.Sleep(monitors.DefaultMaxAge + time.Millisecond)
		b.wantFresh(false, monitors.StateStale)
		select {
		case <-b.Changed():
		default:
			t.Error("becoming stale woke nobody")
		}
		time.Sleep(3 * monitors.DefaultMaxAge)
		b.wantFresh(true, monitors.StateFresh)
		if got := b.journal.String(); got != "[m:registered m:fresh m:stale m:failed m:fresh]" {
			t.Errorf("journal %s", got)
		}
	})
}

func TestGate_ASilentMonitorThatResumesIsFreshAgain(t *testing.T) {
	inBubble(t, func(b *gateBox) {
		m := &scripted{name: "m", pace: b.pace}
		m.run = func(ctx context.Context, _ int, out chan<- resource.Snapshot) error {
			for _, pause := range []time.Duration{15 * time.Second, time.Hour} {
				if err := send(ctx, out, "m"); err != nil {
					return err
				}
				select {
				case <-time.After(pause):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		}
		b.register(m)
		time.Sleep(12 * time.Second)
		b.wantFresh(false, monitors.StateStale)
		time.Sleep(4 * time.Second)
		b.wantFresh(true, monitors.StateFresh)
		if st := b.State(); st[0].Restarts != 0 {
			t.Errorf("restarts %d", st[0].Restarts)
		}
	})
}

func TestGate_AMonitorThatIgnoresItsContextIsReplaced(t *testing.T) {
	inBubble(t, func(b *gateBox) {
		free := make(chan struct{})
		dead := &scripted{name: "dead", run: func(context.Context, int, chan<- resource.Snapshot) error { <-free; return nil }}
		b.register(dead)
		time.Sleep(5 * time.Minute)
		b.wantFresh(false, monitors.StateStale)
		m := &scripted{name: "m", pace: b.pace}
		m.run = m.steady
		b.register(m)
		b.wantFresh(true, monitors.StateFresh)
		if b.Registered() != "m" || dead.runs != 1 {
			t.Errorf("registered %q; the hanging one was run %d times", b.Registered(), dead.runs)
		}
		close(free)
	})
}

func TestGate_RunReportsAMonitorThatNeverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		g, err := monitors.New(monitors.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Register(t.Context(), &scripted{name: "dead",
			run: func(context.Context, int, chan<- resource.Snapshot) error { <-free; return nil }}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- g.Run(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-ended; err == nil {
			t.Error("Run ended without saying that a monitor hangs")
		}
		close(free)
	})
}

func TestGate_AFailingMonitorIsRetriedWithGrowingDelay(t *testing.T) {
	inBubble(t, func(b *gateBox) {
		m := &scripted{name: "m", pace: b.pace}
		m.run = func(ctx context.Context, n int, out chan<- resource.Snapshot) error {
			switch {
			case n == 2:
				panic("driver")
			case n < 4:
				return errors.New("no driver")
			}
			return m.steady(ctx, n, out)
		}
		b.register(m)
		b.wantFresh(false, monitors.StateFailed)
		if st := b.State(); st[0].Error != "no driver" || time.Until(st[0].RetryAt) != time.Second {
			t.Errorf("state %+v", st)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if st := b.State(); st[0].Error != "the monitor panicked: driver" || time.Until(st[0].RetryAt) != 2*time.Second {
			t.Errorf("state %+v", st)
		}
		time.Sleep(2*time.Second + 4*time.Second)
		b.wantFresh(true, monitors.StateFresh)
		if m.runs != 4 || b.State()[0].Restarts != 3 {
			t.Errorf("runs %d, state %+v", m.runs, b.State())
		}
	})
}

func TestGate_UnsupportedIsRetriedRarely(t *testing.T) {
	inBubble(t, func(b *gateBox) {
		m := &scripted{name: "m", run: func(context.Context, int, chan<- resource.Snapshot) error {
			return fmt.Errorf("no such device: %w", monitors.ErrUnsupported)
		}}
		b.register(m)
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if m.runs != 1 {
			t.Errorf("run %d times in a minute", m.runs)
		}
	})
}

func TestGate_ReRegistrationForgetsTheOldReadings(t *testing.T) {
	inBubble(t, func(b *gateBox) {
		old := &scripted{name: "old", pace: b.pace}
		old.run = old.steady
		b.register(old)
		b.wantFresh(true, monitors.StateFresh)
		slow := &scripted{name: "slow", run: func(ctx context.Context, _ int, out chan<- resource.Snapshot) error {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := send(ctx, out, "slow"); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		b.register(slow)
		b.wantFresh(false, monitors.StateStarting)
		time.Sleep(time.Second)
		b.wantFresh(true, monitors.StateFresh)
		if s, _ := b.Latest(); s.Monitor != "slow" {
			t.Errorf("reading is by %q", s.Monitor)
		}
	})
}

func TestGate_WatchWakesEveryReader(t *testing.T) {
	inBubble(t, func(b *gateBox) {
		m := &scripted{name: "m", pace: b.pace}
		m.run = m.steady
		b.register(m)
		first, second := b.Watch(), b.Watch()
		select {
		case <-first:
			t.Error("woken without a reading")
		default:
		}
		time.Sleep(monitors.IdleInterval)
		synctest.Wait()
		<-first
		<-second
	})
}

func TestGate_RegisterNameKnowsNamesAndAliases(t *testing.T) {
	var made []string
	c := monitors.Constructor{Name: "cpu", Aliases: []string{"sys-mon-cpu"}, New: func(p *monitors.Pace) (monitors.Monitor, error) {
		m := &scripted{name: "cpu", pace: p}
		m.run = m.steady
		made = append(made, "cpu")
		return m, nil
	}}
	broken := monitors.Constructor{Name: "broken", New: func(*monitors.Pace) (monitors.Monitor, error) { return nil, errors.New("no") }}
	inBubble(t, func(b *gateBox) {
		if len(made) != 0 {
			t.Error("a monitor was made before anybody registered it")
		}
		for _, name := range []string{"cpu", "sys-mon-cpu"} {
			if err := b.RegisterName(b.t.Context(), name); err != nil {
				t.Fatal(err)
			}
			b.wantFresh(true, monitors.StateFresh)
		}
		var unknown *monitors.UnknownError
		if err := b.RegisterName(b.t.Context(), "gpu"); !errors.As(err, &unknown) || fmt.Sprint(unknown.Known) != "[cpu broken]" {
			t.Errorf("error %v", err)
		}
		if err := b.RegisterName(b.t.Context(), "broken"); err == nil {
			t.Error("a constructor's error is lost")
		}
		if b.Registered() != "cpu" {
			t.Errorf("a failed registration replaced the monitor by %q", b.Registered())
		}
	}, c, broken)
}

func drain(c <-chan struct{}) {
	select {
	case <-c:
	default:
	}
}
