/* The WAN: two TUN devices, one in each site's gateway namespace, and the line between them.
 *
 *   wan <netns A> <netns B> <device> <control socket>
 *
 * A packet's way, for each direction:
 *   read -> cut? -> room in the bounded queue? -> sent at the rate -> lost at random? -> delayed -> written
 *
 * The queue is not simulated packet by packet: free_at is the moment when the transmitter will have sent what it
 * has, so (free_at - now) is the backlog, and a packet's time of arrival is known when it is read. One FIFO of
 * packets with arrival times per direction is all the state there is.
 *
 * CPU: while traffic flows the loop sleeps QUANTUM_NS between rounds and handles all that has come meanwhile;
 * that caps it at 5,000 wake-ups a second and costs at most that much delay. The devices queue 500 packets.
 *
 * Control: one line per SOCK_SEQPACKET message, answered by one line of JSON:
 *   set [rate=<bit/s>] [delay=<ns each way>] [loss=<0..1>] [queue=<bytes>]     cut     heal     show
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PACKET = 2048, CLIENTS = 8, BATCH = 1024, QUANTUM_NS = 200000 };

struct packet {
	struct packet *next;
	int64_t arrives;
	unsigned length;
	unsigned char bytes[PACKET];
};

struct direction {
	int from, to;
	int64_t free_at;
	struct packet *head, *tail;
	/* bytes and packets that were put on the line, that came out of it, and that were dropped, by reason */
	uint64_t sent_bytes, sent_packets, delivered_bytes, delivered_packets;
	uint64_t dropped_queue, dropped_loss, dropped_cut;
};

static struct direction directions[2];
static struct packet *spare;
static double rate_bps, loss;
static int64_t delay_ns, queue_bytes;
static int is_cut;

static int64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static double next_random(void)
{
	static uint64_t x = 0x9e3779b97f4a7c15u;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return (x >> 11) * 0x1p-53;
}

static struct packet *take_packet(void)
{
	struct packet *packet = spare;
	if (packet)
		spare = packet->next;
	else if (!(packet = malloc(sizeof *packet)))
		abort();
	return packet;
}

static void give_back(struct packet *packet)
{
	packet->next = spare;
	spare = packet;
}

static int64_t queue_limit(void)
{
	int64_t fifty_ms = (int64_t)(rate_bps / 8 / 20);
	if (queue_bytes > 0)
		return queue_bytes;
	return fifty_ms > 65536 ? fifty_ms : 65536;
}

/* Puts a packet that has been read on the line; returns 0 if it was dropped. */
static int admit(struct direction *way, struct packet *packet, int64_t now)
{
	if (is_cut) {
		way->dropped_cut++;
		return 0;
	}
	int64_t starts = way->free_at > now ? way->free_at : now;
	if (rate_bps > 0) {
		double backlog = (starts - now) * rate_bps / 8e9;
		if (backlog + packet->length > queue_limit()) {
			way->dropped_queue++;
			return 0;
		}
		starts += (int64_t)(packet->length * 8e9 / rate_bps);
		way->free_at = starts;
	}
	way->sent_packets++;
	way->sent_bytes += packet->length;
	if (loss > 0 && next_random() < loss) {
		way->dropped_loss++;
		return 0;
	}
	packet->arrives = starts + delay_ns;
	packet->next = NULL;
	if (way->head)
		way->tail->next = packet;
	else
		way->head = packet;
	way->tail = packet;
	return 1;
}

static int read_packets(struct direction *way, int64_t now)
{
	int count = 0;
	struct packet *packet = take_packet();
	for (; count < BATCH; count++) {
		ssize_t length = read(way->from, packet->bytes, PACKET);
		if (length <= 0)
			break;
		packet->length = length;
		if (admit(way, packet, now))
			packet = take_packet();
	}
	give_back(packet);
	return count;
}

static int write_packets(struct direction *way, int64_t now)
{
	int count = 0;
	for (; way->head && way->head->arrives <= now; count++) {
		struct packet *packet = way->head;
		way->head = packet->next;
		if (write(way->to, packet->bytes, packet->length) == (ssize_t)packet->length) {
			way->delivered_packets++;
			way->delivered_bytes += packet->length;
		}
		give_back(packet);
	}
	return count;
}

static void drop_all(struct direction *way)
{
	while (way->head) {
		struct packet *packet = way->head;
		way->head = packet->next;
		way->dropped_cut++;
		give_back(packet);
	}
	way->free_at = 0;
}

/* ---- control ---- */

static int show_direction(char *out, size_t size, const char *name, const struct direction *way)
{
	return snprintf(out, size,
			"\"%s\": {\"bytes\": %lu, \"packets\": %lu, \"delivered_bytes\": %lu, "
			"\"delivered_packets\": %lu, \"dropped_queue\": %lu, \"dropped_loss\": %lu, "
			"\"dropped_cut\": %lu}",
			name, way->sent_bytes, way->sent_packets, way->delivered_bytes, way->delivered_packets,
			way->dropped_queue, way->dropped_loss, way->dropped_cut);
}

static void obey(char *line, char *answer, size_t size)
{
	char *rest = NULL;
	char *verb = strtok_r(line, " \n", &rest);
	if (verb && strcmp(verb, "cut") == 0) {
		is_cut = 1;
		drop_all(&directions[0]);
		drop_all(&directions[1]);
	} else if (verb && strcmp(verb, "heal") == 0) {
		is_cut = 0;
	}
	for (char *word; verb && (word = strtok_r(NULL, " \n", &rest));) {
		char *value = strchr(word, '=');
		if (!value)
			continue;
		*value++ = 0;
		if (strcmp(word, "rate") == 0)
			rate_bps = strtod(value, NULL);
		else if (strcmp(word, "delay") == 0)
			delay_ns = strtoll(value, NULL, 10);
		else if (strcmp(word, "loss") == 0)
			loss = strtod(value, NULL);
		else if (strcmp(word, "queue") == 0)
			queue_bytes = strtoll(value, NULL, 10);
	}
	int n = snprintf(answer, size, "{\"rate\": %.0f, \"delay\": %ld, \"loss\": %.9g, \"queue\": %ld, \"cut\": %s, ",
			 rate_bps, delay_ns, loss, queue_bytes, is_cut ? "true" : "false");
	n += show_direction(answer + n, size - n, "a_to_b", &directions[0]);
	n += snprintf(answer + n, size - n, ", ");
	n += show_direction(answer + n, size - n, "b_to_a", &directions[1]);
	snprintf(answer + n, size - n, "}");
}

static int listen_on(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	unlink(path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, CLIENTS) < 0) {
		perror(path);
		exit(1);
	}
	return fd;
}

static void serve(struct pollfd *fds)
{
	for (int i = 3; i < 3 + CLIENTS; i++) {
		char line[512], answer[2048];
		if (fds[i].fd < 0 || !fds[i].revents)
			continue;
		ssize_t length = recv(fds[i].fd, line, sizeof line - 1, 0);
		if (length > 0) {
			line[length] = 0;
			obey(line, answer, sizeof answer);
			(void)!send(fds[i].fd, answer, strlen(answer), MSG_NOSIGNAL);
			continue;
		}
		if (length == 0 || errno != EAGAIN) {
			close(fds[i].fd);
			fds[i].fd = -1;
		}
	}
	for (int i = 3; fds[2].revents && i < 3 + CLIENTS; i++)
		if (fds[i].fd < 0) {
			fds[i].fd = accept4(fds[2].fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
			break;
		}
}

/* ---- start and loop ---- */

static int open_tun(const char *netns, const char *device)
{
	int space = open(netns, O_RDONLY | O_CLOEXEC);
	if (space < 0 || setns(space, CLONE_NEWNET) < 0) {
		perror(netns);
		exit(1);
	}
	close(space);
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
	snprintf(request.ifr_name, sizeof request.ifr_name, "%s", device);
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0) {
		perror("/dev/net/tun");
		exit(1);
	}
	return fd;
}

static void sleep_ns(int64_t ns)
{
	struct timespec pause = {ns / 1000000000, ns % 1000000000};
	nanosleep(&pause, NULL);
}

static void run(struct pollfd *fds)
{
	for (;;) {
		int64_t now = now_ns(), next = INT64_MAX;
		int moved = 0;
		for (int i = 0; i < 2; i++) {
			moved += read_packets(&directions[i], now);
			moved += write_packets(&directions[i], now);
			if (directions[i].head && directions[i].head->arrives < next)
				next = directions[i].head->arrives;
		}
		if (moved)
			sleep_ns(QUANTUM_NS);
		int64_t wait = next == INT64_MAX ? 1000000000 : next - now_ns();
		if (wait < 0 || moved)
			wait = 0;
		struct timespec limit = {wait / 1000000000, wait % 1000000000};
		if (ppoll(fds, 3 + CLIENTS, &limit, NULL) > 0)
			serve(fds);
	}
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		fprintf(stderr, "usage: wan <netns A> <netns B> <device> <control socket>\n");
		return 2;
	}
	int control = listen_on(argv[4]);
	int a = open_tun(argv[2], argv[3]), b;
	b = a;
	a = open_tun(argv[1], argv[3]); /* last, so that the process itself lives in A's namespace */
	directions[0].from = directions[1].to = a;
	directions[0].to = directions[1].from = b;
	prctl(PR_SET_TIMERSLACK, 1000);
	struct pollfd fds[3 + CLIENTS] = {{a, POLLIN, 0}, {b, POLLIN, 0}, {control, POLLIN, 0}};
	for (int i = 0; i < CLIENTS; i++)
		fds[3 + i] = (struct pollfd){-1, POLLIN, 0};
	run(fds);
}
