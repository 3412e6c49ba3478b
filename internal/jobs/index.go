package jobs

import (
	"unique"

	"github.com/google/btree"
)

// The index of jobs that are not final: what a queue knows of them without asking
// its store, in the orders in which they are wanted. All of it is guarded by
// Queue.mu.

// group is one instance's part of the queue.
type group struct {
	instance string
	ready    *btree.BTreeG[*entry]                           // in order of start
	owners   map[unique.Handle[string]]*btree.BTreeG[*entry] // the same, by submitter
	members  int                                             // all entries, running ones too
	block    *Block                                          // what the scheduler said last
}

// place says in which tree a pending entry is.
type place uint8

const (
	nowhere place = iota
	inReady
	inWaiting
)

// entry is the light form of a job that is not final. Guarded by Queue.mu.
type entry struct {
	id            ID
	seq           int64
	group         *group
	submitter     unique.Handle[string]
	created       int64 // Unix nanoseconds, as the three below; 0 means none
	notBefore     int64
	queueDeadline int64
	timerAt       int64
	priority      int
	revision      int64
	attempt       int32
	maxAttempts   int32
	status        Status
	place         place
	held          bool
	// busy is not nil while a write that will move this pending job is not durable
	// yet; whoever wants another waits for it. Closed when it is decided.
	busy   chan struct{}
	done   chan struct{} // made by the first Wait; closed when the job is final
	deps   *depState     // nil without unmet dependencies
	cached *Job          // the whole job, for some pending ones
	run    *Run          // while running
}

// less orders jobs by urgency, then age.
func less(a, b *entry) bool {
	if a.priority != b.priority {
		return a.priority > b.priority
	}
	return a.seq < b.seq
}

func lessTimer(a, b *entry) bool {
	if a.timerAt != b.timerAt {
		return a.timerAt < b.timerAt
	}
	return a.seq < b.seq
}

const treeDegree = 32

func (q *Queue) groupLocked(instance string) *group {
	g := q.groups[instance]
	if g == nil {
		g = &group{instance: instance, ready: btree.NewG(treeDegree, less), owners: make(map[unique.Handle[string]]*btree.BTreeG[*entry])}
		q.groups[instance] = g
	}
	return g
}

// addLocked puts a new entry into the index.
func (q *Queue) addLocked(e *entry) {
	q.jobs[e.id] = e
	e.group.members++
	if e.status == Running {
		q.totals.Running++
		q.running[e] = struct{}{}
	} else {
		q.countLocked(e, 1)
	}
	q.placeLocked(e)
}

// placeLocked puts e into the tree and at the timer where it belongs now.
func (q *Queue) placeLocked(e *entry) {
	want := nowhere
	if e.status == Pending {
		want = inWaiting
		if !e.held && e.busy == nil && e.deps == nil && e.notBefore == 0 {
			want = inReady
		}
	}
	if want != e.place {
		q.unplaceLocked(e)
		switch want {
		case inReady:
			e.group.addReady(e)
		case inWaiting:
			q.waiting.ReplaceOrInsert(e)
		}
		e.place = want
	}
	at := int64(0)
	if e.status == Pending {
		at = e.notBefore
		if e.attempt == 0 && e.queueDeadline != 0 && (at == 0 || e.queueDeadline < at) {
			at = e.queueDeadline
		}
	}
	q.timerLocked(e, at)
}

func (q *Queue) unplaceLocked(e *entry) {
	switch e.place {
	case inReady:
		e.group.dropReady(e)
	case inWaiting:
		q.waiting.Delete(e)
	}
	e.place = nowhere
}

func (g *group) addReady(e *entry) {
	g.ready.ReplaceOrInsert(e)
	mine := g.owners[e.submitter]
	if mine == nil {
		mine = btree.NewG(treeDegree, less)
		g.owners[e.submitter] = mine
	}
	mine.ReplaceOrInsert(e)
}

func (g *group) dropReady(e *entry) {
	g.ready.Delete(e)
	mine := g.owners[e.submitter]
	if mine.Delete(e); mine.Len() == 0 {
		delete(g.owners, e.submitter)
	}
}

func (q *Queue) timerLocked(e *entry, at int64) {
	if e.timerAt == at {
		return
	}
	if e.timerAt != 0 {
		q.timers.Delete(e)
	}
	if e.timerAt = at; at != 0 {
		q.timers.ReplaceOrInsert(e)
	}
}

// countLocked notes that e begins to wait (n = 1) or does not wait any more (-1).
func (q *Queue) countLocked(e *entry, n int) {
	q.totals.Pending += int64(n)
	q.waitsLocked(e.submitter, n)
}

func (q *Queue) waitsLocked(submitter unique.Handle[string], n int) {
	if n += q.waits[submitter]; n == 0 {
		delete(q.waits, submitter)
	} else {
		q.waits[submitter] = n
	}
}

// removeLocked takes an entry that became final out of the index.
func (q *Queue) removeLocked(e *entry, final Status) {
	if e.status == Running {
		q.totals.Running--
		delete(q.running, e)
	} else {
		q.countLocked(e, -1)
	}
	switch final {
	case Completed:
		q.totals.Completed++
	case Failed:
		q.totals.Failed++
	case Cancelled:
		q.totals.Cancelled++
	}
	q.unplaceLocked(e)
	q.timerLocked(e, 0)
	q.uncacheLocked(e)
	e.status = final
	e.run = nil
	delete(q.jobs, e.id)
	if e.group.members--; e.group.members == 0 {
		delete(q.groups, e.group.instance)
	}
	if e.done != nil {
		close(e.done)
	}
	q.forgetDepsLocked(e)
	q.depEndedLocked(e.id, final)
	if q.finals++; q.finals >= pruneBatch {
		q.finals = 0
		select {
		case q.pruneKick <- struct{}{}:
		default:
		}
	}
	q.wake()
}
