package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// depState is what a pending job still waits for. Guarded by Queue.mu.
type depState struct {
	waitFor map[ID]struct{}
	runAll  bool   // on_dependency_failure: run
	failed  string // why the job must be cancelled; "" while all is well
}

// maxResolved bounds the arguments after references were replaced.
const maxResolved = 64 << 20

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
	for field, raw := range map[string]json.RawMessage{"args": sp.Args, "kwargs": sp.Kwargs} {
		if _, err := replaceRefs(raw, func(ref resultRef) (any, error) {
			if !slices.Contains(sp.DependsOn, ref.id) {
				return nil, &InvalidError{Field: field, Message: fmt.Sprintf("refers to the result of %s, which is not in depends_on", ref.id)}
			}
			return nil, nil
		}); err != nil {
			var invalid *InvalidError
			if errors.As(err, &invalid) {
				return invalid
			}
			return &InvalidError{Field: field, Message: err.Error()}
		}
	}
	return nil
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
			return &InvalidError{Field: where[id], Message: fmt.Sprintf("there is no job %s; a job can depend only on jobs submitted before it", id)}
		}
	}
	return nil
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

// resultRef is {"$result": "<job id>", "path": "/json/pointer"} in arguments.
type resultRef struct {
	id   ID
	path string
}

// replaceRefs walks args and puts what fn returns in the place of each
// reference. Arguments without one come back as they are.
func replaceRefs(raw json.RawMessage, fn func(resultRef) (any, error)) (json.RawMessage, error) {
	if !bytes.Contains(raw, []byte(`"$result"`)) {
		return raw, nil
	}
	v, err := decodeNumber(raw)
	if err != nil {
		return nil, err
	}
	if v, err = walkRefs(v, fn); err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

func decodeNumber(raw []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	err := dec.Decode(&v)
	return v, err
}

func walkRefs(v any, fn func(resultRef) (any, error)) (any, error) {
	var err error
	switch t := v.(type) {
	case []any:
		for i := range t {
			if t[i], err = walkRefs(t[i], fn); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		if _, ok := t["$result"]; ok {
			ref, err := parseRef(t)
			if err != nil {
				return nil, err
			}
			return fn(ref)
		}
		for k := range t {
			if t[k], err = walkRefs(t[k], fn); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

func parseRef(m map[string]any) (resultRef, error) {
	id, ok := m["$result"].(string)
	path, isText := "", true
	if p, has := m["path"]; has {
		path, isText = p.(string)
	}
	extra := len(m) - 1
	if _, has := m["path"]; has {
		extra--
	}
	if !ok || !isText || extra > 0 || path != "" && path[0] != '/' {
		return resultRef{}, fmt.Errorf(`a reference is {"$result": "<job id>", "path": "/json/pointer"}`)
	}
	return resultRef{ID(id), path}, nil
}

// resolveResults replaces the references in sp by the results they name. Its
// errors are *Error, or the store's.
func (q *Queue) resolveResults(ctx context.Context, sp *Spec) error {
	results := map[ID]any{}
	resolve := func(ref resultRef) (any, error) {
		v, ok := results[ref.id]
		if !ok {
			var err error
			if v, err = q.resultValue(ctx, ref.id); err != nil {
				return nil, err
			}
			results[ref.id] = v
		}
		v, err := pointer(v, ref.path)
		if err != nil {
			return nil, &refError{fmt.Sprintf("result of job %s: %v", ref.id, err)}
		}
		return v, nil
	}
	args, err := replaceRefs(sp.Args, resolve)
	if err != nil {
		return err
	}
	kwargs, err := replaceRefs(sp.Kwargs, resolve)
	if err != nil {
		return err
	}
	if len(args)+len(kwargs) > maxResolved {
		return &refError{fmt.Sprintf("arguments with results filled in are larger than %d MiB", maxResolved>>20)}
	}
	sp.Args, sp.Kwargs = args, kwargs
	return nil
}

// refError says that a reference cannot be followed, ever.
type refError struct{ message string }

func (e *refError) Error() string { return e.message }

func (q *Queue) resultValue(ctx context.Context, id ID) (any, error) {
	body, info, err := q.Result(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return nil, &refError{fmt.Sprintf("job %s has no result", id)}
	}
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if info.Size > maxResolved {
		return nil, &refError{fmt.Sprintf("the result of job %s is too large to be an argument", id)}
	}
	raw, err := io.ReadAll(body)
	if err != nil {
		return nil, fmt.Errorf("cannot read the result of job %s: %w", id, err)
	}
	v, err := decodeNumber(raw)
	if err != nil {
		return nil, &refError{fmt.Sprintf("the result of job %s is not JSON", id)}
	}
	return v, nil
}

// pointer follows a JSON Pointer (RFC 6901).
func pointer(v any, path string) (any, error) {
	if path == "" {
		return v, nil
	}
	unescape := strings.NewReplacer("~1", "/", "~0", "~")
	for _, tok := range strings.Split(path[1:], "/") {
		tok = unescape.Replace(tok)
		switch t := v.(type) {
		case map[string]any:
			next, ok := t[tok]
			if !ok {
				return nil, fmt.Errorf("path %s: no member %q", path, tok)
			}
			v = next
		case []any:
			i, err := strconv.Atoi(tok)
			if err != nil || i < 0 || i >= len(t) || strconv.Itoa(i) != tok {
				return nil, fmt.Errorf("path %s: no element %q", path, tok)
			}
			v = t[i]
		default:
			return nil, fmt.Errorf("path %s: nothing below %q", path, tok)
		}
	}
	return v, nil
}

// refuse fails a job whose references cannot be followed; other errors are
// passed on and the job stays.
func (q *Queue) refuse(ctx context.Context, id ID, err error) error {
	var ref *refError
	if !errors.As(err, &ref) {
		return fmt.Errorf("cannot start job %s: %w", id, err)
	}
	if err := q.Fail(ctx, id, &Error{Category: UserInput, Message: ref.message}); err != nil {
		return err
	}
	return &StateConflictError{ID: id, Status: Failed, Action: "start"}
}
