/* A driver's library with one GPU, so that the tests go through the real
 * dynamic linker. Built as it is it lacks all that old drivers lack: a call of
 * a missing function would end the process. -DNEW adds what new ones have.
 * FAKE_NVML in the environment is a fault: mismatch, segfault, hang. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int ret;
typedef unsigned long long u64;
static int calls;

static int fault(const char *name)
{
	const char *f = getenv("FAKE_NVML");
	return f && strcmp(f, name) == 0;
}

static ret text(char *out, unsigned n, const char *s)
{
	strncpy(out, s, n);
	return 0;
}

const char *nvmlErrorString(ret r) { return r == 18 ? "Driver/library version mismatch" : "Some error"; }
ret nvmlInit_v2(void) { return fault("mismatch") ? 18 : 0; }
ret nvmlShutdown(void) { return 0; }
ret nvmlSystemGetDriverVersion(char *v, unsigned n) { return text(v, n, "390.157"); }
ret nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
ret nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = &calls; return i; }
ret nvmlDeviceGetUUID(void *d, char *v, unsigned n) { return text(v, n, "GPU-c0ffee00-0000-0000-0000-000000000001"); }
ret nvmlDeviceGetName(void *d, char *v, unsigned n) { return text(v, n, "Tesla K20c"); }

struct memory { u64 total, free, used; };
ret nvmlDeviceGetMemoryInfo(void *d, struct memory *m)
{
	if (++calls == 3) {
		if (fault("segfault"))
			*(volatile int *)0 = 0;
		if (fault("hang"))
			for (;;)
				pause();
	}
	m->total = 8ull << 30, m->used = 3ull << 30, m->free = 5ull << 30;
	return 0;
}

struct process { unsigned pid; u64 used; };
ret nvmlDeviceGetComputeRunningProcesses(void *d, unsigned *n, struct process *p)
{
	if (*n < 2) {
		*n = 2;
		return 7; /* insufficient size */
	}
	p[0].pid = 1, p[0].used = 1ull << 30;
	p[1].pid = 2, p[1].used = ~0ull;
	*n = 2;
	return 0;
}

#ifdef NEW
struct memory_v2 { unsigned version; u64 total, reserved, free, used; };
ret nvmlDeviceGetMemoryInfo_v2(void *d, struct memory_v2 *m)
{
	struct memory v1;
	if (m->version != (sizeof *m | 2u << 24))
		return 25;
	nvmlDeviceGetMemoryInfo(d, &v1);
	m->total = v1.total, m->reserved = 1ull << 30, m->used = v1.used - m->reserved, m->free = v1.free;
	return 0;
}

struct process_v3 { unsigned pid; u64 used; unsigned gi, ci; };
ret nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, struct process_v3 *p)
{
	p[0] = (struct process_v3){1, 2ull << 30, ~0u, ~0u};
	*n = 1;
	return 0;
}
ret nvmlDeviceGetGraphicsRunningProcesses(void *d, unsigned *n, struct process *p) { *n = 0; return 0; }
ret nvmlDeviceGetUtilizationRates(void *d, unsigned *u) { u[0] = 64, u[1] = 12; return 0; }
ret nvmlDeviceGetTemperature(void *d, int sensor, unsigned *t) { *t = 55; return 0; }
ret nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { *mw = 123456; return 0; }
ret nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *next) { return 3; }
ret nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *n) { *n = 0; return 0; }
ret nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned i, void **out) { return 6; }
#endif
