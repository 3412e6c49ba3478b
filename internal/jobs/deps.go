package jobs

import (
	"context"
	"fmt"
	"slices"
)

// depState is what a pending job still waits for. Guarded by Queue.mu.
type depState struct {
	waitFor map[ID]struct{}
	runAll  bool   // on_dependency_failure: run
	failed  string // why the job must be cancelled; "" while all is well
}

// checkDeps checks what can be told from the submission alone.
func checkDeps(id ID, sp Spec) error {
	for i, dep := range sp.DependsOn {
		field := fmt.Sprintf("depends_on/%d", i)
		if err := dep.Check(); err != nil {
			return &InvalidError{Field: field, Message: "is not a job id"}
		}
		if dep == id {
			return &InvalidError{Field: field, Message: "is the job itself"}
		}
		if slices.Contains(sp.DependsOn[:i], dep) {
			return &InvalidError{Field: field, Message: "is named twice"}
		}
	}
	return checkRefs(sp)
}

// DependencyError says that a job to insert depends on one that is not stored (any
// more).
type DependencyError struct{ ID, Missing ID }

func (e *DependencyError) Error() string {
	return fmt.Sprintf("job %s depends on job %s, which is not there", e.ID, e.Missing)
}

// lookUpDeps reads from the store how dependencies ended that are not in the
// index. A job can only depend on jobs accepted before it, or earlier in its
// batch; so there are no cycles.
func (b *batch) lookUpDeps(ctx context.Context, q *Queue) error {
	var ids []ID
	inBatch := map[ID]bool{}
	where := map[ID]string{}
	for _, r := range b.rows {
		for i, dep := range r.Job.Spec.DependsOn {
			if !inBatch[dep] && where[dep] == "" {
				where[dep] = fmt.Sprintf("depends_on/%d", i)
				ids = append(ids, dep)
			}
		}
		inBatch[r.Job.ID] = true
	}
	if len(ids) == 0 {
		return nil
	}
	found, err := q.store.GetMany(ctx, ids)
	if err != nil {
		return err
	}
	b.depEnd = map[ID]Status{}
	for _, j := range found {
		b.depEnd[j.ID] = j.Status
	}
	for _, id := range ids {
		if _, ok := b.depEnd[id]; !ok {
			return missingDep(where[id], id)
		}
	}
	return nil
}

func missingDep(field string, id ID) error {
	return &InvalidError{Field: field, Message: fmt.Sprintf("there is no job %s; a job can depend only on jobs submitted before it", id)}
}

// refusedDep says where in the batch a dependency stands that went between the
// look and the insert.
func (b *batch) refusedDep(e *DependencyError) error {
	for _, r := range b.rows {
		if i := slices.Index(r.Job.Spec.DependsOn, e.Missing); r.Job.ID == e.ID && i >= 0 {
			return missingDep(fmt.Sprintf("depends_on/%d", i), e.Missing)
		}
	}
	return e
}

// linkDepsLocked registers the batch's entries with what they wait for. retry:
// a dependency is in neither the index nor, as final, in what was looked up.
func (q *Queue) linkDepsLocked(b *batch) (retry bool, err error) {
	inBatch := map[ID]bool{}
	for i, r := range b.rows {
		for _, dep := range r.Job.Spec.DependsOn {
			if q.jobs[dep] == nil && !inBatch[dep] && !b.depEnd[dep].Final() {
				for _, e := range b.entries[:i+1] {
					q.forgetDepsLocked(e)
				}
				return true, nil
			}
			if q.jobs[dep] != nil || inBatch[dep] {
				q.dependLocked(b.entries[i], dep, r.Job.Spec.RunOnDepFail)
			} else if end := b.depEnd[dep]; end != Completed && !r.Job.Spec.RunOnDepFail {
				q.dependLocked(b.entries[i], dep, false)
				b.entries[i].deps.failed = depReason(dep, end)
			}
		}
		inBatch[r.Job.ID] = true
	}
	return false, nil
}

func depReason(dep ID, end Status) string {
	return fmt.Sprintf("job %s, which it depends on, %s", dep, endVerb[end])
}

var endVerb = map[Status]string{Failed: "failed", Cancelled: "was cancelled", Completed: "completed"}

func (q *Queue) dependLocked(e *entry, dep ID, runAll bool) {
	if e.deps == nil {
		e.deps = &depState{waitFor: map[ID]struct{}{}, runAll: runAll}
	}
	e.deps.waitFor[dep] = struct{}{}
	q.dependents[dep] = append(q.dependents[dep], e)
}

// forgetDepsLocked takes e out of the lists of what it waits for.
func (q *Queue) forgetDepsLocked(e *entry) {
	if e.deps == nil {
		return
	}
	for dep := range e.deps.waitFor {
		rest := slices.DeleteFunc(q.dependents[dep], func(o *entry) bool { return o == e })
		if len(rest) == 0 {
			delete(q.dependents, dep)
		} else {
			q.dependents[dep] = rest
		}
	}
	e.deps = nil
}

// depEndedLocked tells the dependents of a job that ended.
func (q *Queue) depEndedLocked(id ID, end Status) {
	waiting := q.dependents[id]
	delete(q.dependents, id)
	for _, e := range waiting {
		if e.deps == nil {
			continue
		}
		if end != Completed && !e.deps.runAll {
			e.deps.failed = depReason(id, end)
			q.endIfDepFailedLocked(e)
			continue
		}
		delete(e.deps.waitFor, id)
		if len(e.deps.waitFor) == 0 && e.deps.failed == "" {
			e.deps = nil
			if e.group != nil { // else its own insert is not durable yet
				q.placeLocked(e)
				q.wake()
			}
		}
	}
}

// endIfDepFailedLocked cancels a pending job whose dependency did not complete,
// unless another write is about to move it (which then looks here again).
func (q *Queue) endIfDepFailedLocked(e *entry) {
	if e.deps != nil && e.deps.failed != "" && e.group != nil && e.busy == nil && e.status == Pending {
		q.endForDepLocked(e)
	}
}

func (q *Queue) endForDepLocked(e *entry) *Ticket {
	return q.endPendingLocked(e, pendingEnd{status: Cancelled, action: "cancel", reason: e.deps.failed, by: "dependency"})
}

// recoverDeps links what still waits. A dependency that is neither active nor
// stored was final and pruned: had it failed, its dependent would be cancelled.
func (q *Queue) recoverDeps(ctx context.Context, waits []ActiveJob) error {
	var ids []ID
	for _, a := range waits {
		ids = append(ids, a.DependsOn...)
	}
	if len(ids) == 0 {
		return nil
	}
	found, err := q.store.GetMany(ctx, ids)
	if err != nil {
		return err
	}
	end := make(map[ID]Status, len(found))
	for _, j := range found {
		end[j.ID] = j.Status
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, a := range waits {
		e := q.jobs[a.ID]
		failed := ""
		for _, dep := range a.DependsOn {
			st := end[dep]
			if q.jobs[dep] != nil {
				q.dependLocked(e, dep, a.RunOnDepFail)
			} else if st.Final() && st != Completed && !a.RunOnDepFail {
				q.dependLocked(e, dep, false)
				failed = depReason(dep, st)
			}
		}
		if failed != "" {
			e.deps.failed = failed
			q.endIfDepFailedLocked(e)
		} else {
			q.placeLocked(e)
		}
	}
	return nil
}
