package crashtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	"github.com/cjmd/cjmd/test/daemontest"
)

// enough jobs wait: more would only make the end longer.
const enough = 60

// load starts the clients of one round; stop ends them and waits.
func (r *run) load(round uint64) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var apis []*client.API
	start := func(f func(*user)) {
		api, err := client.New(client.Options{Socket: r.d.Socket})
		if err != nil {
			r.t.Fatal(err)
		}
		apis = append(apis, api)
		n := uint64(len(apis))
		u := &user{ctx: ctx, api: api, ledger: r.ledger, rng: rand.New(rand.NewPCG(r.o.Seed, round<<16|n)), name: fmt.Sprintf("r%d-u%d", round, n)}
		wg.Go(func() { f(u) })
	}
	for range r.o.Clients {
		start((*user).work)
	}
	start((*user).followJournal)
	return func() {
		cancel()
		wg.Wait()
		for _, api := range apis {
			api.CloseIdle()
		}
	}
}

// user is one client. It ends with the first answer that never comes.
type user struct {
	ctx    context.Context //nolint:containedctx // that of the round
	api    *client.API
	ledger *ledger
	rng    *rand.Rand
	name   string
	n      int
	mine   []string
}

// work does one thing after the other until the daemon is gone.
func (u *user) work() {
	for u.ctx.Err() == nil {
		if err := u.step(); err != nil {
			var refused *client.ProblemError
			if !errors.As(err, &refused) {
				return // the daemon was killed
			}
		}
	}
}

func (u *user) step() error {
	deed := u.rng.IntN(100)
	if u.ledger.waiting() > enough && deed < 55 {
		deed = 55 + u.rng.IntN(45)
	}
	switch {
	case deed < 35:
		return u.submit()
	case deed < 43:
		return u.put()
	case deed < 50:
		return u.batch()
	case deed < 55: // holds a slot for a second: not while much waits
		return u.cancelDeaf()
	case deed < 70:
		return u.follow()
	case deed < 82:
		return u.cancel()
	case deed < 95:
		return u.wait()
	default:
		return u.prioritise()
	}
}

// request is a random job.
func (u *user) request() wire.JobRequest {
	plugin := []string{"lab", "labs", "labs", "labs"}[u.rng.IntN(4)]
	var req wire.JobRequest
	switch k := u.rng.IntN(100); {
	case k < 45:
		req = daemontest.OpOf(plugin, "echo", "by", u.name)
	case k < 70:
		req = daemontest.OpOf(plugin, "nap", "ms", u.rng.IntN(60))
	case k < 78:
		req = daemontest.OpOf(plugin, "fail", "category", []string{"fatal", "user_input"}[u.rng.IntN(2)])
	case k < 86:
		req = daemontest.OpOf(plugin, "flaky", "good", 2)
	case k < 92:
		req = daemontest.OpOf(plugin, "talk", "lines", 1+u.rng.IntN(5))
	case k < 95:
		req = daemontest.OpOf(plugin, "big", "size", u.rng.IntN(200_000))
	case k < 98: // processes that the worker leaves running, in sessions of their own
		req = daemontest.OpOf(plugin, "descendants", "count", 1)
	case u.rng.IntN(4) > 0:
		req = daemontest.OpOf(plugin, "pid")
	default: // seldom: each of them makes the worker back off
		req = daemontest.OpOf(plugin, "die_once")
	}
	if u.rng.IntN(4) == 0 {
		req.MaxAttempts = 1
	}
	req.Priority = u.rng.IntN(5)
	return req
}

func (u *user) key() string { u.n++; return fmt.Sprintf("%s-%d", u.name, u.n) }

func (u *user) submit() error {
	req, key := u.request(), u.key()
	u.depend(&req)
	job, err := client.Decode[wire.Job](u.api.SubmitJob(u.ctx, &wire.SubmitJobParams{IdempotencyKey: &key}, req))
	return u.submitted(job, req, key, err)
}

// depend lets some jobs wait for others, whatever became or will become of those.
func (u *user) depend(req *wire.JobRequest) {
	for range max(0, u.rng.IntN(8)-5) {
		if id, ok := u.one(); ok && !slices.Contains(req.DependsOn, id) {
			req.DependsOn = append(req.DependsOn, id)
		}
	}
	if len(req.DependsOn) > 0 && u.rng.IntN(3) == 0 {
		req.OnDependencyFailure = wire.JobRequestOnDependencyFailureRun
	}
}

// submitted notes the outcome of a submit; key is "" where it had none.
func (u *user) submitted(job wire.Job, req wire.JobRequest, key string, err error) error {
	var refused *client.ProblemError
	switch {
	case err == nil:
		u.ledger.accepted(job, req)
		u.mine = append(u.mine, job.Id)
	case key != "" && !errors.As(err, &refused):
		u.ledger.lost(unanswered{key: key, req: req})
	}
	return err
}

func (u *user) put() error {
	req, id := u.request(), u.key()
	job, err := client.Decode[wire.Job](u.api.PutJob(u.ctx, id, nil, req))
	return u.submitted(job, req, "", err)
}

func (u *user) batch() error {
	var body wire.BatchRequest
	var reqs []wire.JobRequest
	var ids []string
	for range 2 + u.rng.IntN(7) {
		req, id := u.request(), u.key()
		reqs, ids = append(reqs, req), append(ids, id)
		body.Jobs = append(body.Jobs, wire.BatchItem{Id: id, Plugin: req.Plugin, Kwargs: req.Kwargs, MaxAttempts: req.MaxAttempts, Priority: req.Priority})
	}
	got, err := client.Decode[wire.BatchAccepted](u.api.SubmitBatch(u.ctx, body))
	if err != nil {
		var refused *client.ProblemError
		if !errors.As(err, &refused) {
			u.ledger.lostBatch(ids)
		}
		return err
	}
	for i, j := range got.Jobs {
		u.ledger.accepted(wire.Job{Id: j.Id, Status: j.Status}, reqs[i])
		u.mine = append(u.mine, j.Id)
	}
	return nil
}

// follow submits a streaming job and reads its events to the end, or until the
// daemon is gone.
func (u *user) follow() error {
	req := daemontest.OpOf("labs", "count", "to", 5+u.rng.IntN(60), "size", u.rng.IntN(3000), "pause", u.rng.IntN(8))
	req.Stream, req.Priority = true, 50 // before what waits: a kill shall come while it is followed
	key := u.key()
	job, err := client.Decode[wire.Job](u.api.SubmitJob(u.ctx, &wire.SubmitJobParams{IdempotencyKey: &key}, req))
	if err := u.submitted(job, req, key, err); err != nil {
		return err
	}
	p := prefix{job: job.Id}
	defer func() { u.ledger.follower(p) }()
	return u.read(daemontest.JobPath(job.Id, "events"), func(ev client.Event) error {
		if ev.Kind != client.EventEnd {
			p.events = append(p.events, ev)
		}
		return nil
	})
}

func (u *user) read(path string, each func(client.Event) error) error {
	resp, err := u.api.Do(u.ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return err
	}
	if err := client.Check(resp); err != nil {
		return err
	}
	defer resp.Body.Close()
	return client.ReadEvents(resp.Body, each)
}

// followJournal keeps what the journal tells live.
func (u *user) followJournal() {
	_ = u.read(fmt.Sprintf("/v1/events?after=%d", u.ledger.cursor()), func(ev client.Event) error {
		u.ledger.saw(ev)
		return nil
	}) // ends with the daemon
}

// one is a job of this client, or now and then of an earlier one.
func (u *user) one() (string, bool) {
	if len(u.mine) == 0 || u.rng.IntN(4) == 0 {
		return u.ledger.some(u.rng)
	}
	return u.mine[u.rng.IntN(len(u.mine))], true
}

func (u *user) cancel() error {
	id, ok := u.one()
	if !ok {
		return u.submit()
	}
	job, err := client.Decode[wire.Job](u.api.CancelJob(u.ctx, id, wire.CancelRequest{Reason: "changed my mind"}))
	if err == nil {
		u.ledger.cancelled(job)
	}
	return err
}

// cancelDeaf cancels a job that hears nothing before it is interrupted: a kill
// may come in any phase of it.
func (u *user) cancelDeaf() error {
	req, key := daemontest.OpOf("labs", "deaf"), u.key()
	req.RunTimeout, req.Priority = "1s", 100
	job, err := client.Decode[wire.Job](u.api.SubmitJob(u.ctx, &wire.SubmitJobParams{IdempotencyKey: &key}, req))
	if err := u.submitted(job, req, key, err); err != nil {
		return err
	}
	begun := errors.New("it has begun")
	err = u.read(daemontest.JobPath(job.Id, "events"), func(ev client.Event) error {
		if ev.Kind == "progress" {
			return begun
		}
		return nil
	})
	if !errors.Is(err, begun) {
		return err
	}
	job, err = client.Decode[wire.Job](u.api.CancelJob(u.ctx, job.Id, wire.CancelRequest{}))
	if err == nil {
		u.ledger.cancelled(job)
	}
	return err
}

func (u *user) wait() error {
	id, ok := u.one()
	if !ok {
		return u.submit()
	}
	wait := wire.Wait("60ms")
	job, err := client.Decode[wire.Job](u.api.GetJob(u.ctx, id, &wire.GetJobParams{Wait: &wait}))
	if err != nil {
		return err
	}
	u.ledger.answered(job)
	if job.Status == wire.JobStatusCompleted && job.Result != nil {
		_, err = client.Decode[json.RawMessage](u.api.GetResult(u.ctx, id, nil))
	}
	return err
}

func (u *user) prioritise() error {
	id, ok := u.one()
	if !ok {
		return u.submit()
	}
	priority := u.rng.IntN(10)
	job, err := client.Decode[wire.Job](u.api.PatchJob(u.ctx, id, nil, wire.JobPatch{Priority: &priority}))
	if err == nil {
		u.ledger.answered(job)
	}
	return err
}
