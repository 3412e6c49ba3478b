package events

// Kinds of the journal. A job's kinds come in this order within one attempt:
//
//	job.submitted (job.held|job.released|job.updated|job.blocked)*
//	job.started (job.phase | job.cancel_requested | job.cancel_phase)*
//	  → job.requeued (back to pending, next attempt) | one of the three final kinds
//
// Exactly one final kind (completed, failed, cancelled) exists per job and
// nothing of the job follows it but job.pruned.
const (
	JobSubmitted       Kind = "job.submitted"
	JobUpdated         Kind = "job.updated" // priority or labels
	JobHeld            Kind = "job.held"
	JobReleased        Kind = "job.released"
	JobBlocked         Kind = "job.blocked" // emitted when the block code of a group's first job changes
	JobStarted         Kind = "job.started" // an attempt begins: {attempt, worker?}
	JobPhase           Kind = "job.phase"   // {phase: loading|executing}
	JobCancelRequested Kind = "job.cancel_requested"
	JobCancelPhase     Kind = "job.cancel_phase" // {phase: cooperative|interrupt|kill, after_ms}
	JobRequeued        Kind = "job.requeued"     // {attempt, error}
	JobCompleted       Kind = "job.completed"
	JobFailed          Kind = "job.failed"
	JobCancelled       Kind = "job.cancelled"
	JobPruned          Kind = "job.pruned"

	WorkerState Kind = "worker.state" // {from, to, cause, pid, exit?}
	// A worker runs with less isolation than was asked for: {tier, missing: [{mechanism, detail}]}.
	WorkerWeaker Kind = "worker.weaker"

	InstanceCreated Kind = "instance.created"
	InstanceDeleted Kind = "instance.deleted"
	InstanceUpdated Kind = "instance.updated" // enabled, config, limits: {field}

	PluginDiscovered Kind = "plugin.discovered"
	PluginChanged    Kind = "plugin.changed" // drift, error, removed: {state, error?}

	QueueControl Kind = "queue.control" // {scope, mode: running|paused|draining}

	MonitorChanged Kind = "monitor.changed" // {monitor, state: registered|fresh|stale|failed, error?}

	SchedulerChanged     Kind = "scheduler.changed"     // {policy}
	SchedulerEvicting    Kind = "scheduler.evicting"    // a worker is stopped to make room: {asker, devices, bytes}
	SchedulerEvicted     Kind = "scheduler.evicted"     // it is gone: {asker, after_ms}; its memory may not be
	SchedulerSettled     Kind = "scheduler.settled"     // its memory is back: {device, bytes, after_ms, was_missing}
	SchedulerQuarantined Kind = "scheduler.quarantined" // memory is missing: {device, bytes, of_bytes}; or an instance is shut: {reason}
	SchedulerThrashing   Kind = "scheduler.thrashing"   // {device, a, b}
	SchedulerShadow      Kind = "scheduler.shadow"      // the reservation is another one, told once it has been for a second: {job, devices, bytes, at?, draining}; without a job there is none

	LeaseCreated Kind = "lease.created" // {lease, device, bytes, holder, note, expires_at?}
	LeaseEnded   Kind = "lease.ended"   // {lease, reason}

	ProfileChanged Kind = "profile.changed" // {plugin, config_hash, device_model, known, source, resident_vram_bytes, execute_vram_bytes,
	// resident_ram_bytes, execute_ram_bytes}; or {plugin, reset: true}

	DaemonStarted  Kind = "daemon.started"
	DaemonStopping Kind = "daemon.stopping"
)
