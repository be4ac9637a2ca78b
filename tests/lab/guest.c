/* The guest is the judge: PID 1 of the lab's virtual machines, and the only program in them.
 *
 * It writes memory pages and disk blocks, remembers what they must hold, reads all of them again and again,
 * and says on the serial console what it found. Nothing outside the guest can vouch for its memory.
 *
 *   lab: boot / lab: ready ...              once each per boot; a second one means that the guest rebooted
 *   B <beat> m<passes> d<passes> w<pages written> k<blocks written> e<mismatches> [f<passes>]      ten times a second
 *   X <memory|disk|files> ...               at once, for each mismatch or I/O error
 *
 * m, d and f count complete passes over memory, disk and files; a guest without files says no f. A pass begins where
 * the one before it ended, so a pass that began and ended after some moment is known from the counters alone.
 *
 * Memory: sums[p] is the checksum of page p, kept up to date word by word; writes[p] counts the writes to it. All
 * of writes[] must add up to the total, so a page that went back in time together with its checksum is found too.
 * Disk: the content of a block follows from (block, generation). The disk has its own thread: a disk that stalls
 * must not look like a guest that stalls.
 * Files: real ones below /files, which came with the initramfs or are on a second disk. The guest reads all of them
 * before it is ready, so that they are in its page cache, and keeps a checksum of each. They have a thread too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include <linux/fs.h>

enum { PAGE = 4096, WORDS = PAGE / 8, CHUNK = 16 * PAGE };
/* Writes of the disk are spread evenly, as those of a database that commits, and not in bursts. */
enum { DISK_TICKS = 100 };
enum { TICKS_PER_SECOND = 50, TICK_NS = 1000000000 / TICKS_PER_SECOND };

static char cmdline[4096];
static atomic_ulong memory_passes, disk_passes, file_passes, pages_written, blocks_written, mismatches;

static void say(const char *format, ...)
{
	char line[256];
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(line, sizeof line - 1, format, arguments);
	va_end(arguments);
	if (length > (int)sizeof line - 2)
		length = sizeof line - 2;
	line[length++] = '\n';
	for (int done = 0; done < length;) {
		ssize_t n = write(1, line + done, length - done);
		if (n <= 0)
			break;
		done += n;
	}
}

static unsigned long setting(const char *name, unsigned long otherwise)
{
	char key[64];
	snprintf(key, sizeof key, " lab.%s=", name);
	char *found = strstr(cmdline, key);
	return found ? strtoul(found + strlen(key), NULL, 10) : otherwise;
}

static uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

static uint64_t scatter(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return (x ^ (x >> 31)) | 1;
}

/* ---- start: devices, modules ---- */

static void load_modules(void)
{
	char name[128];
	FILE *order = fopen("/modules/order", "r");
	while (order && fscanf(order, "%127s", name) == 1) {
		int fd = open(name, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0)
			say("X boot module %s: %s", name, strerror(errno));
		close(fd);
	}
	if (order)
		fclose(order);
}

static void start(void)
{
	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	int console = open("/dev/ttyS0", O_RDWR | O_NOCTTY);
	struct termios raw;
	if (console >= 0 && tcgetattr(console, &raw) == 0) {
		cfmakeraw(&raw);
		tcsetattr(console, TCSANOW, &raw);
	}
	dup2(console, 0);
	dup2(console, 1);
	dup2(console, 2);
	say("lab: boot");
	int fd = open("/proc/cmdline", O_RDONLY);
	cmdline[0] = ' ';
	if (fd >= 0)
		(void)!read(fd, cmdline + 1, sizeof cmdline - 2);
	close(fd);
	load_modules();
}

/* ---- memory ---- */

static uint64_t *memory, *sums;
static uint32_t *writes;
static size_t page_count;

static inline uint64_t share_of(uint64_t word, uint64_t position)
{
	uint64_t x = word + position * 0x9e3779b97f4a7c15u;
	x ^= x >> 29;
	return x * 0xbf58476d1ce4e5b9u;
}

static uint64_t sum_of(const uint64_t *page)
{
	uint64_t sum = 0;
	for (unsigned i = 0; i < WORDS; i++)
		sum += share_of(page[i], i);
	return sum;
}

static void fill(uint64_t *words, uint64_t seed, int random)
{
	static const char text[] = "the quick brown fox jumps over the lazy dog, and the lazy dog ha";
	uint64_t state = scatter(seed);
	if (random) {
		for (unsigned i = 0; i < WORDS; i++)
			words[i] = next_random(&state);
	} else {
		for (unsigned i = 0; i < WORDS; i += 8)
			memcpy(words + i, text, 64);
		for (unsigned i = 0; i < WORDS; i += 64)
			words[i] = seed;
	}
}

/* What a page holds follows from the seed too: two guests have no page of random bytes in common. */
static void fill_memory(unsigned long random_percent, uint64_t *random)
{
	uint64_t first = (uint64_t)setting("seed", 1) << 32;
	memory = mmap(NULL, page_count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sums = calloc(page_count, sizeof *sums);
	writes = calloc(page_count, sizeof *writes);
	if (memory == MAP_FAILED || !sums || !writes) {
		say("X memory cannot allocate %zu pages", page_count);
		for (;;)
			pause();
	}
	for (size_t p = 0; p < page_count; p++) {
		fill(memory + p * WORDS, first + p, next_random(random) % 100 < random_percent);
		sums[p] = sum_of(memory + p * WORDS);
	}
}

static void write_page(uint64_t *random, unsigned words)
{
	size_t p = next_random(random) % page_count;
	uint64_t *page = memory + p * WORDS;
	unsigned at = next_random(random) % WORDS;
	for (unsigned i = 0; i < words; i++, at = (at + 1) % WORDS) {
		uint64_t word = next_random(random);
		sums[p] += share_of(word, at) - share_of(page[at], at);
		page[at] = word;
	}
	writes[p]++;
	pages_written++;
}

/* Verifies `count` pages from where the last call stopped; counts a pass whenever it comes round. */
static void verify_memory(size_t count)
{
	static size_t p;
	static uint64_t seen_writes, reported_already;
	while (count--) {
		uint64_t sum = sum_of(memory + p * WORDS);
		if (sum != sums[p]) {
			mismatches++;
			say("X memory page=%zu writes=%u want=%016lx got=%016lx", p, writes[p], sums[p], sum);
			sums[p] = sum;
		}
		if (++p < page_count)
			continue;
		p = 0;
		seen_writes = 0;
		for (size_t i = 0; i < page_count; i++)
			seen_writes += writes[i];
		if (seen_writes + reported_already != pages_written) {
			mismatches++;
			say("X memory writes want=%lu got=%lu", (unsigned long)pages_written, seen_writes);
			reported_already = pages_written - seen_writes;
		}
		memory_passes++;
	}
}

/* ---- disk: 64 KiB chunks spread evenly over the whole device; writes of single blocks inside them ---- */

struct disk {
	int fd;
	size_t chunks, stride; /* stride in bytes */
	uint32_t *generation;  /* of each block; 0 is never on the disk */
	unsigned long random_percent, rate;
};

static off_t place_of(const struct disk *disk, size_t block)
{
	return (off_t)(block / 16) * disk->stride + (block % 16) * PAGE;
}

static void block_content(const struct disk *disk, uint64_t *words, size_t block, uint32_t generation)
{
	uint64_t seed = (uint64_t)block << 32 | generation;
	fill(words, seed, scatter(seed) / 2 % 100 < disk->random_percent);
	words[0] = seed;
}

static void disk_failed(const char *what, size_t block)
{
	mismatches++;
	say("X disk %s block=%zu: %s", what, block, strerror(errno));
}

static void write_block(struct disk *disk, uint64_t *buffer, size_t block)
{
	block_content(disk, buffer, block, disk->generation[block] + 1);
	if (pwrite(disk->fd, buffer, PAGE, place_of(disk, block)) != PAGE)
		disk_failed("write", block);
	disk->generation[block]++;
	blocks_written++;
}

static void verify_chunk(struct disk *disk, uint64_t *buffer, size_t chunk)
{
	uint64_t want[WORDS];
	if (pread(disk->fd, buffer, CHUNK, place_of(disk, chunk * 16)) != CHUNK) {
		disk_failed("read", chunk * 16);
		return;
	}
	for (size_t i = 0; i < 16; i++) {
		size_t block = chunk * 16 + i;
		uint64_t *got = buffer + i * WORDS;
		block_content(disk, want, block, disk->generation[block]);
		if (memcmp(want, got, PAGE) == 0)
			continue;
		mismatches++;
		say("X disk block=%zu want=%u got=%u of block %u", block, disk->generation[block], (uint32_t)got[0],
		    (uint32_t)(got[0] >> 32));
	}
}

static void fill_disk(struct disk *disk, uint64_t *buffer)
{
	for (size_t chunk = 0; chunk < disk->chunks; chunk++) {
		for (size_t i = 0; i < 16; i++) {
			disk->generation[chunk * 16 + i] = 1;
			block_content(disk, buffer + i * WORDS, chunk * 16 + i, 1);
		}
		if (pwrite(disk->fd, buffer, CHUNK, place_of(disk, chunk * 16)) != CHUNK)
			disk_failed("fill", chunk * 16);
	}
}

static int open_disk(struct disk *disk)
{
	uint64_t size = 0;
	disk->fd = open("/dev/vda", O_RDWR | O_DIRECT | O_CLOEXEC);
	if (disk->fd < 0 || ioctl(disk->fd, BLKGETSIZE64, &size) < 0 || size < CHUNK)
		return 0;
	disk->chunks = (setting("disk_fill", 8) << 20) / CHUNK;
	if (disk->chunks > size / CHUNK)
		disk->chunks = size / CHUNK;
	if (disk->chunks == 0)
		return 0;
	disk->stride = size / disk->chunks / CHUNK * CHUNK;
	disk->generation = calloc(disk->chunks * 16, sizeof *disk->generation);
	disk->random_percent = setting("random", 25);
	disk->rate = setting("disk_rate", 5);
	return disk->generation != NULL;
}

static void *run_disk(void *argument)
{
	struct disk *disk = argument;
	uint64_t *buffer = NULL, random = scatter(setting("seed", 1) + 7);
	if (posix_memalign((void **)&buffer, PAGE, CHUNK) != 0)
		return NULL;
	unsigned long pass_ticks = setting("pass_seconds", 3) * DISK_TICKS, owed_writes = 0, owed_reads = 0;
	for (size_t chunk = 0;;) {
		usleep(1000000 / DISK_TICKS);
		for (owed_writes += disk->rate; owed_writes >= DISK_TICKS; owed_writes -= DISK_TICKS)
			write_block(disk, buffer, next_random(&random) % (disk->chunks * 16));
		for (owed_reads += disk->chunks; owed_reads >= pass_ticks; owed_reads -= pass_ticks) {
			verify_chunk(disk, buffer, chunk);
			if (++chunk == disk->chunks) {
				chunk = 0;
				disk_passes++;
			}
		}
	}
}

/* ---- files: all below /files, read again and again ---- */

struct file {
	char *path;
	uint64_t sum;
};

static struct file *files;
static size_t file_count, file_bytes;

static int take_file(const char *path, const struct stat *status, int kind, struct FTW *place)
{
	(void)place;
	if (kind != FTW_F || !S_ISREG(status->st_mode))
		return 0;
	if ((file_count & (file_count - 1)) == 0) { /* a power of two: full */
		files = realloc(files, (file_count ? 2 * file_count : 1) * sizeof *files);
		if (!files)
			return -1;
	}
	files[file_count++] = (struct file){.path = strdup(path)};
	file_bytes += status->st_size;
	return 0;
}

/* The checksum of a file, of CHUNK bytes at a time. */
static int read_file(const char *path, uint64_t *buffer, uint64_t *sum)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t position = 0;
	ssize_t n = fd < 0 ? -1 : 0;
	*sum = 0;
	while (fd >= 0 && (n = read(fd, buffer, CHUNK)) > 0) {
		memset((char *)buffer + n, 0, -n & 7);
		for (ssize_t i = 0; i < (n + 7) / 8; i++)
			*sum += share_of(buffer[i], position++);
	}
	if (fd >= 0)
		close(fd);
	return n == 0;
}

static void files_failed(const char *path)
{
	mismatches++;
	say("X files %.180s: %s", path, strerror(errno));
}

/* Finds the files and reads each for the first time; returns how many there are. */
static size_t read_in_files(uint64_t *buffer)
{
	if (access("/dev/vdb", F_OK) == 0) {
		mkdir("/files", 0755);
		if (mount("/dev/vdb", "/files", "ext4", MS_RDONLY, NULL) < 0)
			files_failed("/dev/vdb");
	}
	if (access("/files", F_OK) == 0 && nftw("/files", take_file, 16, FTW_PHYS) != 0)
		files_failed("/files");
	for (struct file *file = files; file < files + file_count; file++)
		if (!read_file(file->path, buffer, &file->sum))
			files_failed(file->path);
	return file_count;
}

/* Reads a share of the files every tenth of a second, so that a pass takes files_seconds. */
static void *run_files(void *buffer)
{
	size_t pass_ticks = setting("files_seconds", 15) * 10, owed = 0;
	for (size_t next = 0;;) {
		usleep(100000);
		for (owed += file_count; owed >= pass_ticks; owed -= pass_ticks) {
			uint64_t sum;
			struct file *file = files + next;
			if (!read_file(file->path, buffer, &sum)) {
				files_failed(file->path);
			} else if (sum != file->sum) {
				mismatches++;
				say("X files %.180s want=%016lx got=%016lx", file->path, file->sum, sum);
				file->sum = sum;
			}
			if (++next == file_count) {
				next = 0;
				file_passes++;
			}
		}
	}
	return NULL;
}

/* ---- the beat ---- */

static void wait_for_tick(struct timespec *tick)
{
	struct timespec now;
	tick->tv_nsec += TICK_NS;
	if (tick->tv_nsec >= 1000000000) {
		tick->tv_nsec -= 1000000000;
		tick->tv_sec++;
	}
	clock_gettime(CLOCK_MONOTONIC, &now);
	long late_ms = (now.tv_sec - tick->tv_sec) * 1000 + (now.tv_nsec - tick->tv_nsec) / 1000000;
	if (late_ms > 100)
		*tick = now; /* what was missed stays missed: a burst would look like a fast guest */
	else if (late_ms < 0)
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, tick, NULL);
}

static void beat(unsigned long number)
{
	char passes[32] = "";
	if (file_count)
		snprintf(passes, sizeof passes, " f%lu", file_passes);
	say("B %lu m%lu d%lu w%lu k%lu e%lu%s", number, memory_passes, disk_passes, pages_written, blocks_written, mismatches,
	    passes);
}

/* Memory to read into, whole pages, for what has a thread of its own. */
static uint64_t *own_buffer(void)
{
	void *buffer = NULL;
	return posix_memalign(&buffer, PAGE, CHUNK) == 0 ? buffer : NULL;
}

int main(void)
{
	static struct disk disk;
	uint64_t *buffer;
	pthread_t thread;
	start();
	uint64_t random = scatter(setting("seed", 1));
	page_count = setting("working_set", 96) * 256;
	fill_memory(setting("random", 25), &random);
	int has_disk = open_disk(&disk) && (buffer = own_buffer());
	if (has_disk) {
		fill_disk(&disk, buffer);
		pthread_create(&thread, NULL, run_disk, &disk);
	}
	if ((buffer = own_buffer()) && read_in_files(buffer))
		pthread_create(&thread, NULL, run_files, buffer);
	unsigned long rate = setting("rate", 500), words = setting("words", 1), owed_writes = 0, owed_checks = 0;
	unsigned long pass_ticks = setting("pass_seconds", 3) * TICKS_PER_SECOND;
	unsigned long ticks_per_beat = TICKS_PER_SECOND / setting("beats", 10);
	say("lab: ready pages=%zu chunks=%zu rate=%lu files=%zu bytes=%zu", page_count, has_disk ? disk.chunks : 0, rate,
	    file_count, file_bytes);
	struct timespec tick;
	clock_gettime(CLOCK_MONOTONIC, &tick);
	for (unsigned long number = 1;; number++) {
		for (unsigned long i = 0; i < ticks_per_beat; i++) {
			wait_for_tick(&tick);
			owed_writes += rate;
			for (; owed_writes >= TICKS_PER_SECOND; owed_writes -= TICKS_PER_SECOND)
				write_page(&random, words);
			owed_checks += page_count;
			verify_memory(owed_checks / pass_ticks);
			owed_checks %= pass_ticks;
		}
		beat(number);
	}
}
