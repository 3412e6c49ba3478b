package supervisor

import "time"

// RestartPolicy says when a worker that failed may be started again. It is
// pure: the caller counts failures and supplies the jitter.
type RestartPolicy interface {
	// Next is asked after a failure. failures holds the times of the failures that
	// still count, oldest first, the newest included; jitter is in [-1, 1].
	// ok is false when the worker is to be given up.
	Next(failures []time.Time, jitter float64) (delay time.Duration, ok bool)
	// Forget reports whether a worker that was ready for uptime has earned a
	// clean record.
	Forget(uptime time.Duration) bool
	// Window is how long a failure counts.
	Window() time.Duration
}

// ExponentialRestart is the default policy: delays double from Base to Max, spread by
// Spread; more than MaxFailures within Within gives up.
type ExponentialRestart struct {
	Base, Max   time.Duration
	Spread      float64
	MaxFailures int
	Within      time.Duration
	ForgetAfter time.Duration
}

// DefaultRestart returns min(60 s, 0.5 s × 2ⁿ) ± 20 %, five failures in ten
// minutes, a clean record after a minute of being ready.
func DefaultRestart() ExponentialRestart {
	return ExponentialRestart{
		Base: 500 * time.Millisecond, Max: time.Minute, Spread: 0.2,
		MaxFailures: 5, Within: 10 * time.Minute, ForgetAfter: time.Minute,
	}
}

func (b ExponentialRestart) Next(failures []time.Time, jitter float64) (time.Duration, bool) {
	n := len(failures)
	if n > b.MaxFailures {
		return 0, false
	}
	d := b.Base
	for range n - 1 {
		if d = 2 * d; d >= b.Max {
			d = b.Max
			break
		}
	}
	return time.Duration(float64(d) * (1 + b.Spread*jitter)), true
}

func (b ExponentialRestart) Forget(uptime time.Duration) bool { return uptime >= b.ForgetAfter }

func (b ExponentialRestart) Window() time.Duration { return b.Within }
