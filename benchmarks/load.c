// A load generator for streamed answers (Server-Sent Events over HTTP/1.1), on loopback only.
//
//   load --url http://127.0.0.1:PORT/PATH --body FILE --mark TEXT --done TEXT --tokens N [options]
//
// Every answer is checked: status 200, each token event, and the text, byte for byte, against answer.h.
//   --mark TEXT      a line that holds TEXT is a token event; the contents of its JSON string follow right after TEXT
//   --done TEXT      a good answer has a line that holds TEXT after its last token
//   --tokens N       tokens that an answer has      --stamped        each carries the time it was sent
//   --events N       token events that an answer has, if not N = tokens; 0: any number
//   --connections N  streams at a time              --requests N     in all
//   --seconds S      start none after S seconds     --ramp-ms MS     spread the first starts over MS
//   --rate R         R requests a second, due whether or not those before have ended; a late one counts from when it was
//                    due, and errors end nothing
//   --abort-after K  close after K tokens           --abort-ms MS    close MS after the request, before any token
//   --patience S     give the rest up after S seconds without a completed or refused answer, a token or a close; 30
//   --hold           when every connection has its first token print "held", and close them all at the end of stdin
// "########" in the body becomes the request's number, from 0 on.
// Prints one JSON object: counts, milliseconds as [p50, p99, max], and [number, CLOCK_MONOTONIC ns] of each close of
// ours. Exits 1 if there was any error; "error" says what the first one was.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"

#define LINE_MAX_BYTES 16384
#define READ_BYTES 262144
#define ERRORS_MAX 20

typedef enum { HEAD, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER } Part;

typedef struct {
  int fd;
  bool busy, done, held;
  long number, tokens;       // of the request
  size_t written;            // bytes of it sent
  uint64_t started;
  Part part;
  size_t chunk_left;
  Check check;
  char line[LINE_MAX_BYTES]; // of the head, of the chunked framing, or of the body
  size_t line_len;
  char framing[64];
  size_t framing_len;
} Conn;

static struct sockaddr_in address;
static int epoll_fd, connections = 1;
static const char *mark, *done_mark;
static long tokens = -1, events = -1, requests = 1, abort_after = 0, abort_ms = 0;
static double seconds = 1e9, ramp_ms = 0, rate = 0;
static int stamped, hold;
static char *request, *request_number;
static size_t request_len;
static long started, completed, refused, aborted, held, errors, events_seen, patience = 30;
static int busy;
static uint64_t begun, last_progress;
static char first_error[200];
static Samples first_token, whole;
static struct {
  long number;
  uint64_t ns;
} *closes;

// ---- a request's life

static void begin(Conn *c);
static Conn **idle;                // with a rate: those that wait for the next request to be due
static int idle_len;

static uint64_t due(long number) { return begun + (uint64_t)((double)number * 1e9 / rate); }

static void leave(Conn *c) {
  close(c->fd);
  c->fd = -1;
}

static void fail(Conn *c, const char *what, long number) {
  if (!errors++)
    snprintf(first_error, sizeof first_error, "request %ld: %s (%ld), after %ld tokens", c->number, what, number,
             c->tokens);
  leave(c);
  c->busy = false, busy--;
  begin(c);
}

static void abort_it(Conn *c) {
  closes[aborted].number = c->number;
  closes[aborted++].ns = last_progress = now_ns();
  leave(c);
  c->busy = false, busy--;
  begin(c);
}

static void complete(Conn *c) {
  if (c->tokens < 1 || c->check.at != expected_len) return fail(c, "the text ended early, at byte", (long)c->check.at);
  if (events && c->tokens != events) return fail(c, "another number of token events", c->tokens);
  if (!c->done) return fail(c, "no final event", 0);
  last_progress = now_ns();
  add(&whole, last_progress - c->started);
  completed++;
  c->busy = false, busy--;
  begin(c);
}

static void send_request(Conn *c) {
  char digits[24];
  snprintf(digits, sizeof digits, "%08ld", c->number);
  if (request_number) memcpy(request_number, digits, 8);
  while (c->written < request_len) {
    ssize_t n = send(c->fd, request + c->written, request_len - c->written, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) return fail(c, "cannot send", errno);
    c->written += (size_t)n;
  }
}

static bool ended(void) {
  return started >= requests || (errors >= ERRORS_MAX && !rate) || now_ns() - begun > seconds * 1e9;
}

static void start(Conn *c, uint64_t since) {
  c->number = started++, c->busy = true, busy++;
  c->done = c->held = false, c->part = HEAD;
  c->written = c->line_len = c->framing_len = c->chunk_left = 0, c->tokens = 0;
  c->check = (Check){0};
  c->started = since;
  if (c->fd >= 0) return send_request(c);
  int one = 1;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct epoll_event e = {EPOLLIN | EPOLLOUT | EPOLLET, {.ptr = c}};
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
  if (connect(c->fd, (void *)&address, sizeof address) && errno != EINPROGRESS) fail(c, "cannot connect", errno);
}

static void begin(Conn *c) {
  uint64_t now = now_ns();
  if (ended()) {
    if (c->fd >= 0) leave(c);
  } else if (rate && due(started) > now) idle[idle_len++] = c;
  else start(c, rate ? due(started) : now);
}

// ---- what arrives; each of these is false once the connection has gone on to something else

static bool take_line(Conn *c, uint64_t now) {
  c->line[c->line_len] = 0;
  c->line_len = 0;
  const char *at = strstr(c->line, mark);
  if (!at) {
    if (strstr(c->line, done_mark)) c->done = c->check.at == expected_len;
    return true;
  }
  if (!string_matches(&c->check, at + strlen(mark), now))
    return fail(c, "wrong text before byte", (long)c->check.at), false;
  events_seen++;
  if (!c->tokens++) add(&first_token, now - c->started), last_progress = now;
  if (abort_after && c->tokens >= abort_after) return abort_it(c), false;
  if (hold && !c->held) {
    c->held = true;
    if (++held == connections) puts("held"), fflush(stdout);
  }
  return true;
}

static bool take_body(Conn *c, const char *data, size_t len, uint64_t now) {
  while (len) {
    const char *end = memchr(data, '\n', len);
    size_t n = end ? (size_t)(end - data) : len;
    if (c->line_len + n >= LINE_MAX_BYTES) return fail(c, "a line is too long", LINE_MAX_BYTES), false;
    memcpy(c->line + c->line_len, data, n);
    c->line_len += n;
    if (!end) return true;
    if (!take_line(c, now)) return false;
    data += n + 1, len -= n + 1;
  }
  return true;
}

// One line of the head or of the chunked framing (RFC 9112), without its CR LF.
static bool take_framing(Conn *c) {
  const char *s = c->framing;
  if (c->part == HEAD) {
    if (!strncmp(s, "HTTP/", 5) && atoi(s + 9) != 200) {
      refused += atoi(s + 9) < 500, last_progress = now_ns();
      return fail(c, "status", atoi(s + 9)), false;
    }
    if (!strcasecmp(s, "transfer-encoding: chunked")) c->chunk_left = 1;
    if (*s) return true;
    if (!c->chunk_left) return fail(c, "the answer is not chunked", 0), false;
    c->part = CHUNK_SIZE;
  } else if (c->part == CHUNK_SIZE) {
    c->chunk_left = strtoul(s, NULL, 16);
    c->part = c->chunk_left ? CHUNK : TRAILER;
  } else if (c->part == CHUNK_END) c->part = CHUNK_SIZE;
  else if (!*s) return complete(c), false;
  return true;
}

static bool take(Conn *c, const char *data, size_t len, uint64_t now) {
  while (len) {
    if (c->part == CHUNK) {
      size_t n = len < c->chunk_left ? len : c->chunk_left;
      if (!take_body(c, data, n, now)) return false;
      if (!(c->chunk_left -= n)) c->part = CHUNK_END;
      data += n, len -= n;
      continue;
    }
    char byte = *data++;
    len--;
    if (byte != '\n' && c->framing_len < sizeof c->framing - 1) c->framing[c->framing_len++] = byte;
    if (byte != '\n') continue;
    if (c->framing_len && c->framing[c->framing_len - 1] == '\r') c->framing_len--;
    c->framing[c->framing_len] = 0;
    c->framing_len = 0;
    if (!take_framing(c)) return false;
  }
  return true;
}

static void readable(Conn *c) {
  static char data[READ_BYTES];
  while (c->fd >= 0) {
    ssize_t n = recv(c->fd, data, sizeof data, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (!c->busy) return leave(c);
    if (n <= 0) return fail(c, "the server closed the connection", n < 0 ? errno : 0);
    take(c, data, (size_t)n, now_ns());
  }
}

// ---- the whole run

static void make_request(const char *url, const char *path) {
  char host[16], url_path[256];
  int port;
  if (!url || sscanf(url, "http://%15[0-9.]:%d/%255s", host, &port, url_path) != 3 || strncmp(host, "127.", 4))
    fprintf(stderr, "--url must be http://127.x.x.x:PORT/PATH\n"), exit(2);
  address.sin_family = AF_INET, address.sin_port = htons((uint16_t)port), address.sin_addr.s_addr = inet_addr(host);
  FILE *f = path ? fopen(path, "rb") : NULL;
  if (!f) perror("--body"), exit(2);
  char *body = calloc(1, 1 << 20);
  size_t len = fread(body, 1, (1 << 20) - 1, f);
  fclose(f);
  request = malloc(len + 1024);
  int head = sprintf(request,
                     "POST /%s HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: application/json\r\nAccept: "
                     "text/event-stream\r\nContent-Length: %zu\r\n\r\n",
                     url_path, host, port, len);
  memcpy(request + head, body, len + 1);
  request_len = (size_t)head + len;
  request_number = strstr(request, "########");
  free(body);
}

static int by_size(const void *a, const void *b) {
  return (*(const uint64_t *)a > *(const uint64_t *)b) - (*(const uint64_t *)a < *(const uint64_t *)b);
}

static void print_samples(const char *name, Samples *s) {
  if (s->len) qsort(s->ns, s->len, sizeof *s->ns, by_size);
  if (!s->len) printf(",\"%s\":null", name);
  else
    printf(",\"%s\":[%.4f,%.4f,%.4f]", name, (double)s->ns[s->len / 2] / 1e6, (double)s->ns[s->len * 99 / 100] / 1e6,
           (double)s->ns[s->len - 1] / 1e6);
}

static int print_result(void) {
  printf(
      "{\"started\":%ld,\"completed\":%ld,\"refused\":%ld,\"aborted\":%ld,\"held\":%ld,\"errors\":%ld,"
      "\"events\":%ld,\"seconds\":%.3f",
      started, completed, refused, aborted, held, errors, events_seen, (double)(now_ns() - begun) / 1e9);
  print_samples("first_token_ms", &first_token);
  print_samples("token_delay_ms", &token_delay);
  print_samples("whole_ms", &whole);
  printf(",\"closes\":[");
  for (long i = 0; i < aborted; i++)
    printf("%s[%ld,%llu]", i ? "," : "", closes[i].number, (unsigned long long)closes[i].ns);
  printf("],\"error\":\"%s\"}\n", first_error);
  return errors > 0;
}

static void run(void) {
  Conn *all = calloc((size_t)connections, sizeof *all);
  struct epoll_event events_ready[256], end_of_input = {EPOLLIN, {.ptr = NULL}};
  int begun_connections = 0;
  if (hold) epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &end_of_input);
  idle = calloc((size_t)connections, sizeof *idle);
  for (begun = last_progress = now_ns(); busy || begun_connections < connections || (idle_len && !ended());) {
    while (idle_len && !ended() && due(started) <= now_ns()) start(idle[--idle_len], now_ns());
    for (; begun_connections < connections && now_ns() - begun >= ramp_ms * 1e6 * begun_connections / connections;
         begun_connections++) {
      all[begun_connections].fd = -1;
      begin(&all[begun_connections]);
    }
    int n = epoll_wait(epoll_fd, events_ready, 256, begun_connections < connections || abort_ms || rate ? 1 : 1000);
    for (int i = 0; i < n; i++) {
      Conn *c = events_ready[i].data.ptr;
      if (!c) return;
      if (c->busy && c->written < request_len && events_ready[i].events & EPOLLOUT) send_request(c);
      readable(c);
    }
    for (int i = 0; abort_ms && i < begun_connections; i++)
      if (all[i].busy && !all[i].tokens && now_ns() - all[i].started > (uint64_t)abort_ms * 1000000) abort_it(&all[i]);
    for (int i = 0;
         held < connections && now_ns() - last_progress > (uint64_t)patience * 1000000000ull && i < begun_connections; i++)
      if (all[i].busy) fail(&all[i], "nothing came for too long, in seconds", patience);
  }
}

int main(int argc, char **argv) {
  const char *url = NULL, *body = NULL;
  const struct option options[] = {{"url", 1, 0, 'u'},          {"body", 1, 0, 'b'},        {"mark", 1, 0, 'm'},
                                   {"done", 1, 0, 'd'},         {"tokens", 1, 0, 't'},      {"events", 1, 0, 'e'},
                                   {"connections", 1, 0, 'c'},  {"requests", 1, 0, 'r'},    {"seconds", 1, 0, 's'},
                                   {"ramp-ms", 1, 0, 'p'},      {"abort-after", 1, 0, 'a'}, {"abort-ms", 1, 0, 'A'},
                                   {"rate", 1, 0, 'R'},         {"patience", 1, 0, 'P'},
                                   {"stamped", 0, &stamped, 1}, {"hold", 0, &hold, 1},      {0}};
  for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (o) {
      case 'u': url = optarg; break;
      case 'b': body = optarg; break;
      case 'm': mark = optarg; break;
      case 'd': done_mark = optarg; break;
      case 't': tokens = atol(optarg); break;
      case 'e': events = atol(optarg); break;
      case 'c': connections = atoi(optarg); break;
      case 'r': requests = atol(optarg); break;
      case 's': seconds = atof(optarg); break;
      case 'p': ramp_ms = atof(optarg); break;
      case 'a': abort_after = atol(optarg); break;
      case 'R': rate = atof(optarg); break;
      case 'P': patience = atol(optarg); break;
      case 'A': abort_ms = atol(optarg); break;
      case '?': return 2;
    }
  if (!mark || !done_mark || tokens < 1 || connections < 1 || requests < 1)
    return fprintf(stderr, "--mark, --done and --tokens are needed; counts start at 1\n"), 2;
  if (events < 0) events = tokens;
  struct rlimit files = {65536, 65536};
  setrlimit(RLIMIT_NOFILE, &files);
  make_request(url, body);
  expect_text(tokens, stamped);
  closes = calloc((size_t)requests, sizeof *closes);
  epoll_fd = epoll_create1(0);
  run();
  return print_result();
}
