package sched

import "sync"

// mailbox carries messages to the loop. Senders never wait; wake-ups merge.
type mailbox struct {
	wake chan struct{} // capacity 1

	mu     sync.Mutex
	ended  []*run        // runs whose slot is free again
	calls  []func(*loop) // run by the loop, in order; with nil when it has ended
	closed bool
}

func newMailbox() *mailbox { return &mailbox{wake: make(chan struct{}, 1)} }

// end tells the loop that r's worker has answered.
func (m *mailbox) end(r *run) {
	m.mu.Lock()
	m.ended = append(m.ended, r)
	m.mu.Unlock()
	m.ring()
}

// call has the loop run f; with a nil loop when there is none any more.
func (m *mailbox) call(f func(*loop)) {
	m.mu.Lock()
	closed := m.closed
	if !closed {
		m.calls = append(m.calls, f)
	}
	m.mu.Unlock()
	if closed {
		f(nil)
		return
	}
	m.ring()
}

func (m *mailbox) ring() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// take empties the box into the given buffers, which the loop reuses.
func (m *mailbox) take(ended []*run, calls []func(*loop)) ([]*run, []func(*loop)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ended = append(ended[:0], m.ended...)
	calls = append(calls[:0], m.calls...)
	clear(m.ended)
	clear(m.calls)
	m.ended, m.calls = m.ended[:0], m.calls[:0]
	return ended, calls
}

// close refuses further calls and returns those that were never run.
func (m *mailbox) close() []func(*loop) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	left := m.calls
	m.calls = nil
	return left
}
