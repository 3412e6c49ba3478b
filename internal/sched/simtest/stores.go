package simtest

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
)

// stores is the part of the daemon's database that the scheduler reads and
// writes besides the queue. It survives the daemon; every write is durable at once.
type stores struct {
	rec      *recorder
	profiles map[learn.Key]learn.Profile
	claims   map[string][]resource.ClaimRecord
}

// newStores begins with the profiles of the plugins that have run on such a
// machine before.
func newStores(t *Trace, rec *recorder) *stores {
	s := &stores{rec: rec, profiles: make(map[learn.Key]learn.Profile), claims: make(map[string][]resource.ClaimRecord)}
	for _, name := range t.Names() {
		p := t.Plugins[name]
		if p.Needs != NeedsLearned {
			continue
		}
		models := []string{""}
		if p.gpu() {
			models = nil
			for _, d := range t.Machine.Devices {
				models = append(models, d.Name)
			}
		}
		for _, model := range models {
			k := learn.Key{Plugin: name, ConfigHash: learn.ConfigHash([]byte("{}")), DeviceModel: model}
			s.profiles[k] = p.learned(k)
		}
	}
	return s
}

// learnedRuns is how many earlier runs a learned profile has seen.
const learnedRuns = 8

// learned is the profile that earlier runs of the plugin have left.
func (p *PluginSpec) learned(k learn.Key) learn.Profile {
	out := learn.New(k)
	source := ""
	if p.gpu() {
		source = learn.SourceNVML
	}
	for i := range learnedRuns {
		at := epoch.Add(-time.Duration(learnedRuns-i) * time.Hour)
		part := func(r Range) time.Duration {
			return r.Min + (max(r.Max, r.Min)-r.Min)*time.Duration(i)/time.Duration(learnedRuns-1)
		}
		out.Observe(learn.Sample{Phase: learn.Load, At: at, Duration: part(p.Load), VRAM: resource.FromMB(p.ResidentMB), RAM: resource.FromMB(p.RAMMB), Source: source})
		out.Observe(learn.Sample{Phase: learn.Run, At: at, Duration: part(p.Run), VRAM: resource.FromMB(p.ExecuteMB), RAM: resource.FromMB(p.ExecuteRAMMB), Source: source})
	}
	return out
}

// Profiles implements sched.Profiles, as do the following.
func (s *stores) Profiles(context.Context) ([]learn.Profile, error) {
	var out []learn.Profile
	for _, p := range s.profiles {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b learn.Profile) int {
		return strings.Compare(a.Plugin+"/"+a.DeviceModel, b.Plugin+"/"+b.DeviceModel)
	})
	return out, nil
}

func (s *stores) PutProfile(_ context.Context, p learn.Profile, drafts ...events.Draft) error {
	s.profiles[p.Key] = p
	s.rec.Emit(drafts...)
	return nil
}

func (s *stores) DeleteProfiles(_ context.Context, plugin string, drafts ...events.Draft) (int, error) {
	n := 0
	for k := range s.profiles {
		if k.Plugin == plugin {
			delete(s.profiles, k)
			n++
		}
	}
	s.rec.Emit(drafts...)
	return n, nil
}

// claimsLog is the stores as one life of the daemon sees them: a daemon that was
// killed writes nothing any more.
type claimsLog struct {
	*stores
	alive func() bool
}

// Claims implements sched.ClaimsLog.
func (s claimsLog) Claims(context.Context) ([]resource.ClaimRecord, error) {
	var out []resource.ClaimRecord
	for _, owner := range sortedKeys(s.claims) {
		out = append(out, s.claims[owner]...)
	}
	return out, nil
}

// StoreClaims implements sched.ClaimsLog.
func (s claimsLog) StoreClaims(owner string, claims []resource.ClaimRecord, drafts ...events.Draft) *jobs.Ticket {
	t := jobs.NewTicket()
	if !s.alive() {
		t.Resolve(jobs.Written{Err: jobs.ErrStoreUnavailable})
		return t
	}
	if len(claims) == 0 {
		delete(s.claims, owner)
	} else {
		s.claims[owner] = slices.Clone(claims)
	}
	s.rec.Emit(drafts...)
	t.Resolve(jobs.Written{})
	return t
}
