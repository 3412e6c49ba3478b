package sched

import (
	"context"
	"fmt"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
)

// Profiles keeps what was learned over restarts.
type Profiles interface {
	Profiles(ctx context.Context) ([]learn.Profile, error)
	PutProfile(ctx context.Context, p learn.Profile, drafts ...events.Draft) error
	DeleteProfiles(ctx context.Context, plugin string, drafts ...events.Draft) (int, error)
}

// ClaimsLog keeps what workers were given, so that a daemon that died knows what
// may not be free yet. StoreClaims replaces all of the owner's (none: forgets
// them); writes keep the order of the calls.
type ClaimsLog interface {
	Claims(ctx context.Context) ([]resource.ClaimRecord, error)
	StoreClaims(owner string, claims []resource.ClaimRecord, drafts ...events.Draft) *jobs.Ticket
}

// LeaseStore keeps leases over restarts; row and event are one transaction.
type LeaseStore interface {
	Leases(ctx context.Context) ([]resource.Lease, error)
	PutLease(ctx context.Context, x resource.Lease, drafts ...events.Draft) error
	DeleteLease(ctx context.Context, id string, drafts ...events.Draft) error
}

// restore reads what an earlier daemon left. Its workers have been reaped by
// now, which does not mean that their memory is back: their claims settle by
// measurement like those of any dead worker.
func (l *loop) restore(ctx context.Context) error {
	now := l.s.o.Now()
	if s := l.s.o.Profiles; s != nil {
		all, err := s.Profiles(ctx)
		if err != nil {
			return fmt.Errorf("cannot read what was learned: %w", err)
		}
		for _, p := range all {
			l.profiles[p.Key] = p
			l.toldProfile[p.Key] = p.Estimate()
		}
	}
	if s := l.s.o.Leases; s != nil {
		all, err := s.Leases(ctx)
		if err != nil {
			return fmt.Errorf("cannot read the leases: %w", err)
		}
		for _, x := range all {
			l.leases = append(l.leases, &lease{Lease: x, stored: true})
		}
	}
	if s := l.s.o.Claims; s != nil {
		all, err := s.Claims(ctx)
		if err != nil {
			return fmt.Errorf("cannot read the claims of an earlier run: %w", err)
		}
		for _, c := range all {
			l.inherit(now, c)
		}
	}
	return nil
}

// inherit takes over one claim of a worker of an earlier daemon.
func (l *loop) inherit(now time.Time, c resource.ClaimRecord) {
	l.journalled[c.Owner] = true
	if c.Device == resource.HostDevice {
		return // the kernel has it back
	}
	l.ledger.claims = append(l.ledger.claims, Claim{Owner: c.Owner, Kind: KindResident, Instance: c.Instance, Device: c.Device,
		Bytes: c.Bytes, Phase: PhaseReleasing, Since: now})
	l.settles = append(l.settles, &settle{instance: c.Instance, device: c.Device, since: now, before: -1, last: -1})
}

// journal writes down what the worker that is about to start was given. The
// ticket is nil where nothing has to be awaited.
func (l *loop) journal(in *inst) *jobs.Ticket {
	if l.s.o.Claims == nil {
		return nil
	}
	var rows []resource.ClaimRecord
	for i := range l.ledger.claims {
		c := &l.ledger.claims[i]
		if c.Instance != in.name || c.past() || c.Device == resource.HostDevice {
			continue
		}
		at := -1
		for j := range rows {
			if rows[j].Device == c.Device {
				at = j
			}
		}
		if at >= 0 { // resident and execute are one thing to a daemon that comes after
			rows[at].Bytes += c.Bytes
			continue
		}
		rows = append(rows, resource.ClaimRecord{Owner: in.name, Kind: KindResident, Instance: in.name, Device: c.Device,
			Bytes: c.Bytes, Phase: c.Phase, Since: c.Since})
	}
	if len(rows) == 0 {
		return nil
	}
	l.journalled[in.name] = true
	return l.s.o.Claims.StoreClaims(in.name, rows)
}

// forgetClaims removes the rows of a worker whose memory was seen back.
func (l *loop) forgetClaims(instance string) {
	if l.s.o.Claims == nil || !l.journalled[instance] {
		return
	}
	if in := l.insts[instance]; in != nil && in.live {
		return
	}
	for i := range l.ledger.claims {
		if c := &l.ledger.claims[i]; c.Instance == instance && c.past() {
			return
		}
	}
	delete(l.journalled, instance)
	l.s.o.Claims.StoreClaims(instance, nil)
}
