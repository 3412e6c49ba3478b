package sched

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/oklog/ulid/v2"
	"go.uber.org/zap"
)

// lease is memory that its holder keeps for programs that are none of ours.
type lease struct {
	resource.Lease
	// base is the external use when it was granted: what others use beyond that is
	// the lease being used, and is not taken off twice.
	base   resource.Bytes
	based  bool // base was read
	stored bool // it is on disk; until then it must not be reported as granted
}

// Lease sets memory aside for programs that are none of ours, at once: nothing
// new is let in on it, idle workers are stopped for it, running jobs end first.
// What is still held by workers is Missing in the answer. It is durable when
// Lease returns. Errors: *NeverFitsError, *NoDeviceError, ErrStopping.
func (s *Scheduler) Lease(ctx context.Context, q LeaseRequest) (LeaseState, error) {
	if q.Bytes <= 0 || q.For < 0 {
		return LeaseState{}, &NeverFitsError{Reason: &jobs.Error{Category: jobs.UserInput, Message: "a lease needs a positive amount of memory and no negative time"}}
	}
	var made *lease
	var refused error
	if !s.ask(ctx, func(l *loop) { made, refused = l.grant(l.s.o.Now(), q) }) {
		return LeaseState{}, orStopping(ctx)
	}
	if refused != nil {
		return LeaseState{}, refused
	}
	data := map[string]any{"lease": made.ID, "device": made.Device, "bytes": made.Bytes, "holder": made.Holder, "note": made.Note}
	if !made.ExpiresAt.IsZero() {
		data["expires_at"] = made.ExpiresAt.UTC()
	}
	draft := events.Draft{Kind: events.LeaseCreated, Data: data}
	if s.o.Leases != nil {
		if err := s.o.Leases.PutLease(ctx, made.Lease, draft); err != nil {
			s.ask(context.WithoutCancel(ctx), func(l *loop) { l.dropLease(made.ID) })
			return LeaseState{}, fmt.Errorf("cannot store the lease: %w", err)
		}
	} else {
		s.emit(draft)
	}
	var st LeaseState
	if !s.ask(ctx, func(l *loop) { made.stored = true; st = l.leaseState(made) }) {
		return LeaseState{}, orStopping(ctx)
	}
	return st, nil
}

func orStopping(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return ErrStopping
}

// Leases lists the leases that are in force, oldest first.
func (s *Scheduler) Leases(ctx context.Context) ([]LeaseState, error) {
	var out []LeaseState
	if !s.ask(ctx, func(l *loop) { out = l.leaseStates() }) {
		return nil, orStopping(ctx)
	}
	return out, nil
}

// EndLease gives a lease's memory back to the scheduler. ErrNoLease.
func (s *Scheduler) EndLease(ctx context.Context, id, by string) error {
	found := false
	if !s.ask(ctx, func(l *loop) {
		found = slices.ContainsFunc(l.leases, func(x *lease) bool { return x.ID == id && x.stored })
	}) {
		return orStopping(ctx)
	}
	if !found {
		return ErrNoLease
	}
	if err := s.storeEnd(ctx, id, "ended by "+by); err != nil {
		return err
	}
	s.ask(context.WithoutCancel(ctx), func(l *loop) { l.dropLease(id) })
	return nil
}

// storeEnd makes the end of a lease durable, with its event.
func (s *Scheduler) storeEnd(ctx context.Context, id, why string) error {
	draft := events.Draft{Kind: events.LeaseEnded, Data: map[string]any{"lease": id, "reason": why}}
	if s.o.Leases == nil {
		s.emit(draft)
		return nil
	}
	if err := s.o.Leases.DeleteLease(ctx, id, draft); err != nil {
		return fmt.Errorf("cannot end lease %s: %w", id, err)
	}
	return nil
}

// grant makes a lease, or says why there can be none.
func (l *loop) grant(now time.Time, q LeaseRequest) (*lease, error) {
	dev, err := l.leaseDevice(q)
	if err != nil {
		return nil, err
	}
	most := l.totalRAM
	if v := l.viewOf(dev); v != nil {
		most = v.Total - v.Margin
	}
	if q.Bytes > most {
		return nil, &NeverFitsError{Reason: &jobs.Error{Category: jobs.ResourceCat,
			Message:   fmt.Sprintf("%s has %.0f MiB to give, %.0f MiB are asked for", dev, most.MB(), q.Bytes.MB()),
			Shortfall: []resource.Shortfall{{Resource: "memory", Device: dev, Needed: q.Bytes, Available: max(most, 0)}}}}
	}
	x := &lease{Lease: resource.Lease{ID: ulid.Make().String(), Device: dev, Bytes: q.Bytes, Holder: q.Holder, Note: q.Note, CreatedAt: now}}
	if q.For > 0 {
		x.ExpiresAt = now.Add(q.For)
	}
	l.leases = append(l.leases, x)
	l.ledger.changed = true
	l.rebalance()
	return x, nil
}

// leaseDevice finds the device by UUID or index; without a name, the one that
// has the most left, of those that are large enough.
func (l *loop) leaseDevice(q LeaseRequest) (resource.DeviceID, error) {
	if q.Device == string(resource.HostDevice) {
		return resource.HostDevice, nil
	}
	var known []resource.DeviceID
	var best *DeviceView
	for i := range l.devs {
		v := &l.devs[i]
		known = append(known, v.ID)
		if q.Device == string(v.ID) || q.Device == strconv.Itoa(v.Index) {
			return v.ID, nil
		}
		if v.Total-v.Margin >= q.Bytes && (best == nil || v.Free > best.Free) {
			best = v
		}
	}
	switch {
	case q.Device != "" || len(l.devs) == 0:
		return "", &NoDeviceError{Name: q.Device, Known: known}
	case best == nil:
		return l.devs[0].ID, nil // whose total then says that it never fits
	}
	return best.ID, nil
}

func (l *loop) dropLease(id string) {
	l.basis.moved = true
	l.leases = slices.DeleteFunc(l.leases, func(x *lease) bool { return x.ID == id })
	l.ledger.changed = true
}

// leaseLeft is what the leases on a device still take off its free memory.
func (l *loop) leaseLeft(dev resource.DeviceID, external resource.Bytes) resource.Bytes {
	var n, base resource.Bytes
	found := false
	for _, x := range l.leases {
		if x.Device != dev {
			continue
		}
		if !x.based && !l.snap.At.IsZero() {
			x.base, x.based = external, true
		}
		if !found || x.base < base {
			base = x.base
		}
		found = true
		n += x.Bytes
	}
	return max(n-max(external-base, 0), 0)
}

// expireLeases ends what has run out, and says when the next one does.
func (l *loop) expireLeases(now time.Time) {
	l.leaseEnds = time.Time{}
	for _, x := range slices.Clone(l.leases) {
		switch {
		case x.ExpiresAt.IsZero():
		case x.ExpiresAt.After(now):
			if l.leaseEnds.IsZero() || x.ExpiresAt.Before(l.leaseEnds) {
				l.leaseEnds = x.ExpiresAt
			}
		default:
			l.dropLease(x.ID)
			l.spawn(func() {
				if err := l.s.storeEnd(l.work, x.ID, "expired"); err != nil && l.work.Err() == nil {
					l.s.log.Warn("cannot store the end of a lease", zap.Error(err))
				}
			})
		}
	}
}

func (l *loop) leaseStates() []LeaseState {
	var out []LeaseState
	for _, x := range l.leases {
		if x.stored {
			out = append(out, l.leaseState(x))
		}
	}
	return out
}

// leaseState says how much of a lease is still held by workers.
func (l *loop) leaseState(x *lease) LeaseState {
	st := LeaseState{Lease: x.Lease}
	st.Missing = min(max(l.leaseShort(x.Device), 0), x.Bytes)
	if st.Missing > 0 {
		for _, a := range l.workerAccounts() {
			if a.Device == x.Device && a.Counted() > 0 {
				st.Holders = append(st.Holders, a.Instance)
			}
		}
	}
	return st
}
