package sched

import (
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

// take sets claims aside. What the owner had reserved of the same kind and
// device becomes this claim.
func (l *ledger) take(now time.Time, claims []Claim) {
	for _, c := range claims {
		c.Since = now
		l.changed = true
		if i := l.find(c.Owner, c.Kind, c.Device); i >= 0 {
			c.Measured = l.claims[i].Measured
			l.claims[i] = c
			continue
		}
		l.claims = append(l.claims, c)
	}
}

func (l *ledger) find(owner, kind string, dev resource.DeviceID) int {
	for i := range l.claims {
		c := &l.claims[i]
		if c.Owner == owner && c.Kind == kind && c.Device == dev {
			return i
		}
	}
	return -1
}

// release drops every claim of owner.
func (l *ledger) release(owner string) {
	kept := l.claims[:0]
	for _, c := range l.claims {
		if c.Owner != owner {
			kept = append(kept, c)
		}
	}
	if len(kept) != len(l.claims) {
		l.changed = true
	}
	l.claims = kept
}

// setPhase moves owner's claims to phase.
func (l *ledger) setPhase(now time.Time, owner, phase string) {
	for i := range l.claims {
		if c := &l.claims[i]; c.Owner == owner && c.Phase != phase {
			c.Phase, c.Since = phase, now
			l.changed = true
		}
	}
}

// measure notes what owner was seen to use of a device.
func (l *ledger) measure(owner string, dev resource.DeviceID, used resource.Bytes) {
	for i := range l.claims {
		if c := &l.claims[i]; c.Owner == owner && c.Device == dev && c.Measured != used {
			c.Measured = used
			l.changed = true
		}
	}
}

// balance says what is left on the host and on each device: what the monitor
// saw free, minus the margin, minus what is claimed but not yet in use (and so
// not yet missing from the monitor's figure). total is what could ever be free.
func (l *ledger) balance(s resource.Snapshot) (ram resource.Bytes, dev map[resource.DeviceID]resource.Bytes, total resource.Bytes) {
	ram = s.Host.MemAvailable - l.margin
	total = s.Host.MemTotal - l.margin
	unified := resource.DeviceID("")
	if len(s.Devices) > 0 {
		dev = make(map[resource.DeviceID]resource.Bytes, len(s.Devices))
		for _, d := range s.Devices {
			dev[d.ID] = d.Free
			if d.Unified {
				unified = d.ID
			}
		}
	}
	for i := range l.claims {
		c := &l.claims[i]
		open := max(c.Bytes-c.Measured, 0)
		if c.Device == resource.HostDevice || c.Device == unified {
			ram -= open
		}
		if _, ok := dev[c.Device]; ok {
			dev[c.Device] -= open
		}
		if unified != "" && c.Device == resource.HostDevice {
			dev[unified] -= open
		}
	}
	return ram, dev, total
}
