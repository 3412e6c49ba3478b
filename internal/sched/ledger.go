package sched

import (
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
)

// ledger holds every claim. Owned by the loop. Checking and taking are one
// step because only the loop does either, within one pass.
type ledger struct {
	claims []Claim // a handful per worker; scanned, not indexed
	margin resource.Bytes
	// changed since the last balance: claims or what was measured.
	changed bool
}

// past reports whether the claim is that of a worker that is no more.
func (c *Claim) past() bool { return c.Phase == PhaseReleasing || c.Phase == PhaseQuarantined }

// own reports whether the claim keeps room for its own instance.
func (c *Claim) own() bool { return c.Phase == PhaseReserved && c.Owner == c.Instance }

// take sets claims aside. What the owner had reserved of the same kind and
// device becomes this claim.
func (l *ledger) take(now time.Time, claims []Claim) {
	for _, c := range claims {
		c.Since = now
		l.changed = true
		if c.Instance == "" && c.Kind == KindResident {
			c.Instance = c.Owner
		}
		if i := l.find(c.Owner, c.Kind, c.Device); i >= 0 {
			c.Measured = l.claims[i].Measured
			l.claims[i] = c
			continue
		}
		l.claims = append(l.claims, c)
	}
}

// find returns the place of a claim that is in force, -1 when there is none.
func (l *ledger) find(owner, kind string, dev resource.DeviceID) int {
	for i := range l.claims {
		c := &l.claims[i]
		if c.Owner == owner && c.Kind == kind && c.Device == dev && !c.past() {
			return i
		}
	}
	return -1
}

// drop removes the claims for which gone answers true.
func (l *ledger) drop(gone func(*Claim) bool) {
	kept := l.claims[:0]
	for i := range l.claims {
		if !gone(&l.claims[i]) {
			kept = append(kept, l.claims[i])
		}
	}
	if len(kept) != len(l.claims) {
		l.changed = true
		clear(l.claims[len(kept):])
	}
	l.claims = kept
}

// release drops the claims of owner that are in force.
func (l *ledger) release(owner string) {
	l.drop(func(c *Claim) bool { return c.Owner == owner && !c.past() })
}

// dropHolds gives back what is held for instance until its victims are gone.
func (l *ledger) dropHolds(instance string) {
	l.drop(func(c *Claim) bool { return c.Owner == instance && c.Phase == PhaseReserved })
}

// setPhase moves the claims of instance's worker to phase.
func (l *ledger) setPhase(now time.Time, instance, phase string) {
	for i := range l.claims {
		c := &l.claims[i]
		if c.Owner == instance && c.Kind == KindResident && !c.past() && c.Phase != PhaseReserved && c.Phase != phase {
			c.Phase, c.Since = phase, now
			l.changed = true
		}
	}
}

// measure notes what instance's worker was seen to use of a device, and by what.
func (l *ledger) measure(instance string, dev resource.DeviceID, used resource.Bytes, source string) {
	i := l.find(instance, KindResident, dev)
	if i < 0 {
		return
	}
	if c := &l.claims[i]; c.Measured != used || c.Source != source {
		c.Measured, c.Source = used, source
		l.changed = true
	}
}

// resize sets what a worker's resident claim on a device is.
func (l *ledger) resize(instance string, dev resource.DeviceID, n resource.Bytes) {
	if i := l.find(instance, KindResident, dev); i >= 0 && l.claims[i].Bytes != n {
		l.claims[i].Bytes = n
		l.changed = true
	}
}

// held sums what is claimed of a device in instance's name and in force.
func (l *ledger) held(instance string, dev resource.DeviceID) (n resource.Bytes) {
	for i := range l.claims {
		if c := &l.claims[i]; c.Instance == instance && c.Device == dev && !c.past() {
			n += c.Bytes
		}
	}
	return n
}

// on lists the devices, without the host, on which instance's worker has claims.
func (l *ledger) on(instance string) []resource.DeviceID {
	var out []resource.DeviceID
	for i := range l.claims {
		c := &l.claims[i]
		if c.Instance == instance && c.Device != resource.HostDevice && !c.past() && !slices.Contains(out, c.Device) {
			out = append(out, c.Device)
		}
	}
	return out
}
