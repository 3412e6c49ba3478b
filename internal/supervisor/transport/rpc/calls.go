package rpc

import (
	"strconv"
	"sync"

	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

// calls is the table of the requests in flight. The read loop takes out what
// was answered; who asked puts in.
type calls struct {
	mu    sync.Mutex // guards the rest; leaves, and is held for nothing but the maps
	last  uint64
	byID  map[string]*request
	byJob map[string]*running
}

// request is one request whose answer is awaited.
type request struct {
	id       string
	method   string
	run      *running    // execute only
	answered chan answer // holds one, so that the read loop never waits
}

// answer is what the worker said to a request. Slices belong to the receiver.
type answer struct {
	result      []byte // raw JSON object
	payload     []byte
	failure     *failure
	contentType string
	cancelled   bool
}

// running is one execute in flight.
type running struct {
	job    string
	stream bool
	chunks uint64 // arrived so far; written by the read loop, read after the answer

	// mu is held while the sink is called, so that abandon returns only when no
	// call of the sink is under way: a Sink must not call back into Execute.
	mu   sync.Mutex
	sink supervisor.Sink // nil when nobody listens any more
}

func newCalls() *calls {
	return &calls{byID: make(map[string]*request), byJob: make(map[string]*running)}
}

// add gives a request its id. It returns nil when run's job is in flight already.
func (c *calls) add(method string, run *running) *request {
	req := &request{method: method, run: run, answered: make(chan answer, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if run != nil {
		if _, taken := c.byJob[run.job]; taken {
			return nil
		}
		c.byJob[run.job] = run
	}
	c.last++
	req.id = strconv.FormatUint(c.last, 10)
	c.byID[req.id] = req
	return req
}

// drop forgets a request that was never sent.
func (c *calls) drop(req *request) { c.take([]byte(req.id)) }

// take removes and returns the request with this id, nil when there is none.
func (c *calls) take(id []byte) *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	req := c.byID[string(id)]
	if req == nil {
		return nil
	}
	delete(c.byID, string(id))
	if req.run != nil {
		delete(c.byJob, req.run.job)
	}
	return req
}

// job returns the running execute with this id, nil when there is none.
func (c *calls) job(id []byte) *running {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byJob[string(id)]
}

// tell calls the sink where there is one.
func (r *running) tell(f func(supervisor.Sink)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sink != nil {
		f(r.sink)
	}
}

// chunk hands one chunk to the sink; the caller has checked its number.
func (r *running) chunk(n uint64, payload []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sink != nil {
		r.sink.Chunk(n, payload)
	}
}

// abandon ends the calls of the sink.
func (r *running) abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sink = nil
}

// check compares the count in an answer with what arrived.
func (r *running) check(count int64, job string) error {
	if count != int64(r.chunks) {
		return wire.Broken(wire.ChunkCount, "the answer of job %q says %d chunks, %d arrived", job, count, r.chunks)
	}
	return nil
}
