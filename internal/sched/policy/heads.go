package policy

import "github.com/cjmd/cjmd/internal/jobs"

// head is one group's next ready job in the order over all groups.
type head struct {
	group int // index into View.Groups
	next  int // index into its Ready
	slots int // slots of the group still free in this plan
	job   *jobs.Ready
}

// heads is a binary heap, most urgent first: higher priority, then earlier
// submission. Written out because container/heap allocates per element.
type heads []head

func (h heads) before(i, j int) bool {
	a, b := h[i].job, h[j].job
	if a.Priority != b.Priority {
		return a.Priority > b.Priority
	}
	return a.Seq < b.Seq
}

func (h heads) init() {
	for i := len(h)/2 - 1; i >= 0; i-- {
		h.down(i)
	}
}

// down restores the order after the element at i became less urgent.
func (h heads) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(h) {
			return
		}
		if c+1 < len(h) && h.before(c+1, c) {
			c++
		}
		if !h.before(c, i) {
			return
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}

// pop removes the most urgent element.
func (h *heads) pop() {
	last := len(*h) - 1
	(*h)[0] = (*h)[last]
	*h = (*h)[:last]
	h.down(0)
}
