/* The WAN: two TUN devices, one in each site's gateway namespace, and the line between them.
 *
 *   wan <netns A> <netns B> <device> <control socket>
 *
 * A packet's way, for each direction:
 *   read -> cut? -> connection blocked or stalled? -> room in the bounded queue? -> sent at the rate
 *        -> lost at random? -> delayed -> written
 *
 * The queue is not simulated packet by packet: free_at is the moment when the transmitter will have sent what it
 * has, so (free_at - now) is the backlog, and a packet's time of arrival is known when it is read. One FIFO of
 * packets with arrival times per direction is all the state there is.
 *
 * Faults of single TCP connections go by port: a connection has the fault of either of its ports. Of a blocked one
 * every packet is dropped. Of a stalled one, each direction lets a packet through whenever the packet before it would
 * have passed at STALL_RATE, and drops the rest: the connection lives, and its sender's retransmission timer makes it
 * a trickle. What was on the line before the fault still arrives.
 *
 * CPU: while traffic flows the loop sleeps QUANTUM_NS between rounds and handles all that has come meanwhile;
 * that caps it at 5,000 wake-ups a second and costs at most that much delay. The devices queue 500 packets.
 *
 * Control: one line per SOCK_SEQPACKET message, answered by one line of JSON:
 *   set [rate=<bit/s>] [delay=<ns each way>] [loss=<0..1>] [queue=<bytes>]     cut     heal     show
 *   block <port>...     stall <port>...     unblock [<port>...]     flows
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
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
enum { FLOWS = 128, PORTS = 65536, STALL_RATE = 2048 /* bytes per second */ };
enum fault { NO_FAULT, STALLED, BLOCKED };

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
	uint64_t dropped_queue, dropped_loss, dropped_cut, dropped_fault;
};

/* A TCP connection: index 0 is the end at site A, and the direction from A to B. */
struct flow {
	unsigned char address[2][4];
	unsigned port[2];
	int64_t seen, passes_at[2];
	uint64_t bytes[2]; /* put on the line, as in struct direction */
};

static struct direction directions[2];
static struct flow flows[FLOWS];
static unsigned char faults[PORTS]; /* enum fault, by port */
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

/* The TCP connection of a packet, which may be new and takes the place of the one not seen for longest then; or NULL. */
static struct flow *flow_of(const struct packet *packet, int from, int64_t now)
{
	const unsigned char *ip = packet->bytes, *tcp = ip + (ip[0] & 15) * 4;
	int is_first_fragment = packet->length >= 20 && ip[0] >> 4 == 4 && !((ip[6] & 0x1f) | ip[7]);
	if (!is_first_fragment || ip[9] != IPPROTO_TCP || tcp + 4 > ip + packet->length)
		return NULL;
	struct flow key = {.seen = now}, *oldest = flows;
	for (int end = 0; end < 2; end++) {
		int is_source = end == from;
		const unsigned char *port = tcp + (is_source ? 0 : 2);
		memcpy(key.address[end], ip + (is_source ? 12 : 16), 4);
		key.port[end] = port[0] << 8 | port[1];
	}
	for (struct flow *flow = flows; flow < flows + FLOWS; flow++) {
		if (!memcmp(flow->address, key.address, sizeof key.address) &&
		    !memcmp(flow->port, key.port, sizeof key.port)) {
			flow->seen = now;
			return flow;
		}
		if (flow->seen < oldest->seen)
			oldest = flow;
	}
	*oldest = key;
	return oldest;
}

static enum fault fault_of(const struct flow *flow)
{
	enum fault one = faults[flow->port[0]], other = faults[flow->port[1]];
	return one > other ? one : other;
}

/* Whether its connection's fault lets a packet of so many bytes through. */
static int passes(struct flow *flow, int from, unsigned length, int64_t now)
{
	enum fault fault = fault_of(flow);
	if (fault == NO_FAULT)
		return 1;
	if (fault == BLOCKED || now < flow->passes_at[from])
		return 0;
	flow->passes_at[from] = now + length * 1000000000LL / STALL_RATE;
	return 1;
}

/* Puts a packet that has been read on the line; returns 0 if it was dropped. */
static int admit(struct direction *way, struct packet *packet, int64_t now)
{
	if (is_cut) {
		way->dropped_cut++;
		return 0;
	}
	int from = way - directions;
	struct flow *flow = flow_of(packet, from, now);
	if (flow && !passes(flow, from, packet->length, now)) {
		way->dropped_fault++;
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
	if (flow)
		flow->bytes[from] += packet->length;
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

static char answer[32768];
static size_t answered;

/* Adds to the answer; what does not fit is cut off. */
static void say(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	answered += vsnprintf(answer + answered, sizeof answer - answered, format, arguments);
	va_end(arguments);
	if (answered > sizeof answer - 1)
		answered = sizeof answer - 1;
}

static void show_direction(const char *name, const struct direction *way)
{
	say(", \"%s\": {\"bytes\": %lu, \"packets\": %lu, \"delivered_bytes\": %lu, \"delivered_packets\": %lu, "
	    "\"dropped_queue\": %lu, \"dropped_loss\": %lu, \"dropped_cut\": %lu, \"dropped_fault\": %lu}",
	    name, way->sent_bytes, way->sent_packets, way->delivered_bytes, way->delivered_packets, way->dropped_queue,
	    way->dropped_loss, way->dropped_cut, way->dropped_fault);
}

static void show_ports(const char *name, enum fault fault)
{
	const char *separator = "";
	say(", \"%s\": [", name);
	for (int port = 0; port < PORTS; port++)
		if (faults[port] == fault) {
			say("%s%d", separator, port);
			separator = ", ";
		}
	say("]");
}

static void show(void)
{
	say("{\"rate\": %.0f, \"delay\": %ld, \"loss\": %.9g, \"queue\": %ld, \"cut\": %s", rate_bps, delay_ns, loss,
	    queue_bytes, is_cut ? "true" : "false");
	show_ports("blocked", BLOCKED);
	show_ports("stalled", STALLED);
	show_direction("a_to_b", &directions[0]);
	show_direction("b_to_a", &directions[1]);
	say("}");
}

/* Every connection that is remembered; "idle" is in seconds. */
static void show_flows(int64_t now)
{
	const char *names[] = {"", "stalled", "blocked"}, *separator = "";
	say("[");
	for (struct flow *flow = flows; flow < flows + FLOWS; flow++) {
		const unsigned char *a = flow->address[0], *b = flow->address[1];
		if (!flow->seen)
			continue;
		say("%s{\"a\": \"%d.%d.%d.%d\", \"a_port\": %u, \"b\": \"%d.%d.%d.%d\", \"b_port\": %u, ", separator, a[0],
		    a[1], a[2], a[3], flow->port[0], b[0], b[1], b[2], b[3], flow->port[1]);
		say("\"a_to_b\": %lu, \"b_to_a\": %lu, \"idle\": %.3f, \"fault\": \"%s\"}", flow->bytes[0], flow->bytes[1],
		    (now - flow->seen) / 1e9, names[fault_of(flow)]);
		separator = ", ";
	}
	say("]");
}

static void set_line(char *rest)
{
	for (char *word; (word = strtok_r(NULL, " \n", &rest));) {
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
}

/* Gives each port that is named a fault; returns how many that were. */
static int set_faults(char *rest, enum fault fault)
{
	int count = 0;
	for (char *word; (word = strtok_r(NULL, " \n", &rest)); count++)
		faults[strtoul(word, NULL, 10) % PORTS] = fault;
	return count;
}

static void obey(char *line)
{
	char *rest = NULL, *verb = strtok_r(line, " \n", &rest);
	answered = 0;
	if (!verb)
		verb = "show";
	if (strcmp(verb, "flows") == 0) {
		show_flows(now_ns());
		return;
	}
	if (strcmp(verb, "cut") == 0) {
		is_cut = 1;
		drop_all(&directions[0]);
		drop_all(&directions[1]);
	} else if (strcmp(verb, "heal") == 0) {
		is_cut = 0;
	} else if (strcmp(verb, "block") == 0) {
		set_faults(rest, BLOCKED);
	} else if (strcmp(verb, "stall") == 0) {
		set_faults(rest, STALLED);
	} else if (strcmp(verb, "unblock") == 0) {
		if (!set_faults(rest, NO_FAULT))
			memset(faults, NO_FAULT, sizeof faults);
	} else if (strcmp(verb, "set") == 0) {
		set_line(rest);
	}
	show();
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
		char line[512];
		if (fds[i].fd < 0 || !fds[i].revents)
			continue;
		ssize_t length = recv(fds[i].fd, line, sizeof line - 1, 0);
		if (length > 0) {
			line[length] = 0;
			obey(line);
			(void)!send(fds[i].fd, answer, answered, MSG_NOSIGNAL);
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
