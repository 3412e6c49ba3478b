/* A libnvidia-ml.so.1 with pretended cards, for proving the GPU checks on a
 * machine without one. TORCH_FAKE_DIR names a directory: "devices" lists
 * "UUID BYTES NAME", "use/PID-START" what a process holds ("INDEX BYTES" a line) and
 * "lag_ms" how long the memory of a dead process stays away. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, BAD_ARGUMENT = 2, NOT_FOUND = 6, TOO_SMALL = 7, MAX = 8 };

struct memory { unsigned long long total, free, used; };
struct process { unsigned int pid; unsigned long long used; unsigned int gi, ci; };
struct card { char uuid[96], name[96]; unsigned long long total; int index; };

static struct card cards[MAX];
static int count;

static FILE *in(const char *name) {
	char path[1024];
	const char *dir = getenv("TORCH_FAKE_DIR");
	snprintf(path, sizeof path, "%s/%s", dir ? dir : "/nonexistent", name);
	return fopen(path, "r");
}

int nvmlInit_v2(void) {
	FILE *f = in("devices");
	if (!f) return 9; /* driver not loaded */
	for (count = 0; count < MAX; count++) {
		struct card *c = &cards[count];
		if (fscanf(f, "%95s %llu %95s", c->uuid, &c->total, c->name) != 3) break;
		c->index = count;
	}
	fclose(f);
	return OK;
}

int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == OK ? "no error" : "pretended error"; }

int nvmlSystemGetDriverVersion(char *to, unsigned int size) { snprintf(to, size, "0.0-pretended"); return OK; }
int nvmlDeviceGetCount_v2(unsigned int *n) { *n = (unsigned)count; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **device) {
	if (i >= (unsigned)count) return BAD_ARGUMENT;
	*device = &cards[i];
	return OK;
}

int nvmlDeviceGetUUID(void *d, char *to, unsigned int size) { snprintf(to, size, "%s", ((struct card *)d)->uuid); return OK; }
int nvmlDeviceGetName(void *d, char *to, unsigned int size) { snprintf(to, size, "%s", ((struct card *)d)->name); return OK; }

/* a process id alone may belong to another by now: its start time has to agree */
static int alive(int pid, unsigned long long start) {
	char path[64], text[1024], state, *end;
	unsigned long long begin;
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	FILE *f = fopen(path, "r");
	if (!f) return 0;
	size_t n = fread(text, 1, sizeof text - 1, f);
	fclose(f);
	text[n] = 0;
	end = strrchr(text, ')');
	return end && sscanf(end + 1, " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu", &state, &begin) == 2
		&& state != 'Z' && state != 'X' && begin == start;
}

/* returns whether memory of a dead process is still away; notes when it was first seen dead */
static int lingers(const char *path) {
	char mark[1500];
	struct stat st;
	struct timespec now;
	long lag = 0;
	snprintf(mark, sizeof mark, "%s.dead", path);
	int fd = open(mark, O_CREAT | O_EXCL | O_WRONLY, 0600);
	if (fd >= 0) close(fd);
	FILE *f = in("lag_ms");
	if (f) { if (fscanf(f, "%ld", &lag) != 1) lag = 0; fclose(f); }
	if (stat(mark, &st) != 0) return 0;
	clock_gettime(CLOCK_REALTIME, &now);
	return (now.tv_sec - st.st_mtim.tv_sec) * 1000 + (now.tv_nsec - st.st_mtim.tv_nsec) / 1000000 <= lag;
}

/* sums what is held of a card; lists the living holders when out is given */
static unsigned long long held(struct card *c, struct process *out, unsigned int *n) {
	char dir[1024], path[1400];
	unsigned long long sum = 0;
	unsigned int room = n ? *n : 0, found = 0;
	const char *base = getenv("TORCH_FAKE_DIR");
	snprintf(dir, sizeof dir, "%s/use", base ? base : "/nonexistent");
	DIR *d = opendir(dir);
	for (struct dirent *e; d && (e = readdir(d));) {
		unsigned long long bytes, mine = 0, start;
		int pid, index;
		if (strspn(e->d_name, "0123456789-") != strlen(e->d_name) || sscanf(e->d_name, "%d-%llu", &pid, &start) != 2) continue;
		int lives = alive(pid, start);
		snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
		if (!lives && !lingers(path)) continue;
		FILE *f = fopen(path, "r");
		while (f && fscanf(f, "%d %llu", &index, &bytes) == 2)
			if (index == c->index) mine += bytes;
		if (f) fclose(f);
		sum += mine;
		if (!lives || !mine) continue;
		if (out && found < room) out[found] = (struct process){(unsigned)pid, mine, 0xffffffffu, 0xffffffffu};
		found++;
	}
	if (d) closedir(d);
	if (n) *n = found;
	return sum;
}

int nvmlDeviceGetMemoryInfo(void *d, struct memory *m) {
	struct card *c = d;
	unsigned long long used = held(c, NULL, NULL);
	if (used > c->total) used = c->total;
	*m = (struct memory){c->total, c->total - used, used};
	return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned int *n, struct process *out) {
	unsigned int room = *n;
	held(d, out, n);
	return *n > room ? TOO_SMALL : OK;
}
