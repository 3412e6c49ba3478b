package jobs

import "bytes"

// What is kept of whole jobs, beside the index: those that start soon, and those
// that have just ended. Both are bounded, and the store has all of it.

// cacheBytes bounds the arguments of pending jobs kept in memory, so that a job
// that starts soon after its submit is not read back from the store.
const cacheBytes = 16 << 20

func (q *Queue) cacheLocked(e *entry, j Job) {
	size := len(j.Spec.Args) + len(j.Spec.Kwargs) + 1024
	if q.cached+size <= cacheBytes {
		e.cached = &j
		q.cached += size
	}
}

func (q *Queue) uncacheLocked(e *entry) {
	if e.cached != nil {
		q.cached -= len(e.cached.Spec.Args) + len(e.cached.Spec.Kwargs) + 1024
		e.cached = nil
	}
}

const (
	recentJobs = 1024
	recentArgs = 16 << 10 // larger arguments are read from the store
	recentBody = 4 << 10  // so are larger results
)

// endedJob is a job that has just ended. result is nil when it has none, or a
// large one.
type endedJob struct {
	job    Job
	result []byte
}

// rememberLocked keeps a job that has just ended: who waited for it reads it
// now. Final jobs never change.
func (q *Queue) rememberLocked(j Job, result []byte) {
	if len(j.Spec.Args)+len(j.Spec.Kwargs) > recentArgs {
		return
	}
	if len(result) > recentBody {
		result = nil
	}
	// The result may be a small part of the large buffer it was received in.
	q.recent[j.ID] = &endedJob{job: j, result: bytes.Clone(result)}
	if len(q.recentRing) < recentJobs {
		q.recentRing = append(q.recentRing, j.ID)
		return
	}
	delete(q.recent, q.recentRing[q.recentAt])
	q.recentRing[q.recentAt] = j.ID
	q.recentAt = (q.recentAt + 1) % recentJobs
}
