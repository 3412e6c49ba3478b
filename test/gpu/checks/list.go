package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// check is one line of the table. run answers with what was seen; an error
// fails the check, an *absentError skips it.
type check struct {
	name     string
	expected string
	run      func(s *session, ctx context.Context) (seen string, err error)
}

// list is every check, in the order of the table. Each begins without workers.
func list() []check {
	return []check{
		{"devices", "monitor nvidia is fresh and lists every card by UUID, totals within 2 % of the driver's", (*session).checkDevices},
		{"visible", "CUDA_VISIBLE_DEVICES of a worker is the UUID of its card; a worker without a need sees none", (*session).checkVisible},
		{"several-cards", "a worker with count 2 sees two cards, as placed", (*session).checkSeveralCards},
		{"attribution", "the ledger measures a worker within 10 % of torch's reserved memory plus context", (*session).checkAttribution},
		{"profile", "after its first run a profile is there, within 10 % of what the driver showed", (*session).checkProfile},
		{"share", "two plugins run at once on one card", (*session).checkShare},
		{"never-fits", "a job that needs more than any card has fails at once, with the numbers", (*session).checkNeverFits},
		{"hold", "a job that does not fit beside busy workers waits, says what is missing, and they stay", (*session).checkHold},
		{"evict", "idle workers go for it; its worker starts only once their memory is back, and soon after (250 ms)", (*session).checkEvict},
		{"measuring", "a plugin that nobody knows has the card to itself for its first run, and not for the next", (*session).checkMeasuring},
		{"load-oom", "a load that runs out of memory is tried twice, then fails and says who held what", (*session).checkLoadOOM},
		{"run-oom", "a run that runs out of memory is repeated and completes; other workers stay", (*session).checkRunOOM},
		{"leak", "memory that a worker keeps after its run is counted as its own, within 10 %", (*session).checkLeak},
		{"lease", "a lease holds memory back; jobs go on when it ends", (*session).checkLease},
		{"kill-worker", "after kill -9 of a worker its memory is back and the next job runs", (*session).checkKillWorker},
		{"kill-daemon", "after kill -9 of the daemon no process is left and memory is back; the job runs again after a restart", (*session).checkKillDaemon},
	}
}

// choose picks checks by name; all when names is empty.
func choose(names string) ([]check, error) {
	all := list()
	if names == "" {
		return all, nil
	}
	var out []check
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(c check) bool { return c.name == strings.TrimSpace(name) })
		if i < 0 {
			return nil, fmt.Errorf("there is no check %q", name)
		}
		out = append(out, all[i])
	}
	return out, nil
}
