// A stand-in for an OpenAI-compatible provider: POST .../chat/completions streams an answer in the real chunk shape.
//
//   provider [PORT]        listens on 127.0.0.1 (PORT 0 or none: any free one) and prints {"port":N}
//
// The request's body steers its own answer by the text  bench:KEY=NUMBER,KEY=NUMBER...  anywhere in it:
//   tokens  how many to send                     gap    microseconds between two of them; 0 sends all in one write
//   wait    microseconds before the status line  first  microseconds from there to the first token
//   hold    send this many, then go silent       stamp  1: each token carries the time it was sent (answer.h)
//   id      a number to know the request by in /stats
// GET /stats   counts, and [id, CLOCK_MONOTONIC ns] of each stream whose client left early since the last call
// GET /v1/models   a list of one
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "answer.h"

#define REQUEST_MAX (1 << 20)
#define CLOSES_MAX 1024

typedef struct {
  int fd;
  char *in;                        // REQUEST_MAX bytes, one more for a NUL
  size_t in_len;
  char *out;                       // not yet written: out_sent..out_len
  size_t out_len, out_sent, out_cap;
  bool want_out;                   // registered for EPOLLOUT
  bool streaming, headed, ended;   // an answer is under way; its head is queued; its last byte is queued
  long tokens, gap, first, hold, stamp, id;
  long next;                       // the token to send next
  uint64_t due;                    // when to go on, in ns
  int heap_at;                     // place in the heap of timers, -1 where it waits for none
} Conn;

static int epoll_fd;
static Conn **heap;                // a binary heap by `due`
static int heap_len, heap_cap;
static long requests, completed, aborted, active, tokens_sent;
static struct {
  long id;
  uint64_t ns;
} closes[CLOSES_MAX];
static int closes_len;
static char literals[64][64];      // WORDS as JSON string contents

// ---- timers

static void heap_place(Conn *c, int at) {
  heap[at] = c;
  c->heap_at = at;
}

static void heap_up(Conn *c, int at) {
  for (; at > 0 && heap[(at - 1) / 2]->due > c->due; at = (at - 1) / 2) heap_place(heap[(at - 1) / 2], at);
  heap_place(c, at);
}

static void heap_down(Conn *c, int at) {
  for (int child; (child = 2 * at + 1) < heap_len; at = child) {
    if (child + 1 < heap_len && heap[child + 1]->due < heap[child]->due) child++;
    if (heap[child]->due >= c->due) break;
    heap_place(heap[child], at);
  }
  heap_place(c, at);
}

static void heap_remove(Conn *c) {
  if (c->heap_at < 0) return;
  Conn *last = heap[--heap_len];
  int at = c->heap_at;
  c->heap_at = -1;
  if (last == c) return;
  heap_down(last, at);
  heap_up(last, last->heap_at);
}

static void wait_until(Conn *c, uint64_t due) {
  if (heap_len == heap_cap) heap = realloc(heap, sizeof *heap * (size_t)(heap_cap = heap_cap ? heap_cap * 2 : 64));
  c->due = due;
  heap_up(c, heap_len++);
}

// ---- output

static void put(Conn *c, const char *data, size_t len) {
  if (c->out_len + len > c->out_cap) c->out = realloc(c->out, c->out_cap = 2 * (c->out_len + len));
  memcpy(c->out + c->out_len, data, len);
  c->out_len += len;
}

#define CHUNK_HEAD                                                                                                 \
  "data: "                                                                                                         \
  "{\"id\":\"chatcmpl-Bq7Zs0vYt3LmNc81xUoHd5RkPwEe\",\"object\":\"chat.completion.chunk\",\"created\":1760000000," \
  "\"model\":\"gpt-4o-mini-2024-07-18\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_3c2f9a71de\","    \
  "\"choices\":"

static void put_chunk(Conn *c, const char *const parts[], int count) {
  size_t len = 0;
  char size[16];
  for (int i = 0; i < count; i++) len += strlen(parts[i]);
  put(c, size, (size_t)snprintf(size, sizeof size, "%zx\r\n", len));
  for (int i = 0; i < count; i++) put(c, parts[i], strlen(parts[i]));
  put(c, "\r\n", 2);
}

static void put_delta(Conn *c, const char *delta, const char *text, const char *finish) {
  put_chunk(c,
            (const char *[]){CHUNK_HEAD "[{\"index\":0,\"delta\":{", delta, text,
                             "},\"logprobs\":null,\"finish_reason\":", finish,
                             "}],\"usage\":null,\"obfuscation\":\"h5QzKp\"}\n\n"},
            6);
}

static void put_token(Conn *c) {
  char text[128];
  tokens_sent++;
  const char *word = literals[c->next++ % WORD_COUNT];
  if (c->stamp)
    snprintf(text, sizeof text, "@%0*llu@%s\"", STAMP_DIGITS, (unsigned long long)(now_ns() / 1000 % STAMP_MODULUS),
             word);
  else snprintf(text, sizeof text, "%s\"", word);
  put_delta(c, "\"content\":\"", text, "null");
}

static void put_head(Conn *c) {
  static const char head[] =
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
      "x-request-id: req_4f1c\r\nTransfer-Encoding: chunked\r\n\r\n";
  put(c, head, sizeof head - 1);
  put_delta(c, "\"role\":\"assistant\",\"content\":\"\",\"refusal\":null", "", "null");
}

static void put_end(Conn *c) {
  char usage[256];
  snprintf(usage, sizeof usage,
           "{\"prompt_tokens\":1100,\"completion_tokens\":%ld,\"total_tokens\":%ld,"
           "\"prompt_tokens_details\":{\"cached_tokens\":0},\"completion_tokens_details\":{\"reasoning_tokens\":0}}",
           c->tokens, c->tokens + 1100);
  put_delta(c, "", "", "\"stop\"");
  put_chunk(c, (const char *[]){CHUNK_HEAD "[],\"usage\":", usage, ",\"obfuscation\":\"y\"}\n\n"}, 3);
  put_chunk(c, (const char *[]){"data: [DONE]\n\n"}, 1);
  put(c, "0\r\n\r\n", 5);
}

// ---- one request

static void hang_up(Conn *c) {
  if (c->streaming) {
    aborted++, active--;
    if (closes_len < CLOSES_MAX) closes[closes_len].id = c->id, closes[closes_len++].ns = now_ns();
  }
  heap_remove(c);
  close(c->fd);
  free(c->in), free(c->out), free(c);
}

// Writes what is queued; false where the connection is lost, and freed.
static bool flush(Conn *c) {
  while (c->out_sent < c->out_len) {
    ssize_t n = send(c->fd, c->out + c->out_sent, c->out_len - c->out_sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) break;
    if (n < 0) return hang_up(c), false;
    c->out_sent += (size_t)n;
  }
  bool all = c->out_sent == c->out_len;
  if (all) c->out_sent = c->out_len = 0;
  if (all && c->streaming && c->ended) c->streaming = false, completed++, active--;
  if (c->want_out == all) {
    c->want_out = !all;
    struct epoll_event e = {EPOLLIN | (all ? 0 : EPOLLOUT), {.ptr = c}};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
  }
  return true;
}

// Queues and writes what is due now, and sets the timer for what comes after.
static bool go_on(Conn *c) {
  if (!c->headed) {
    c->headed = true;
    put_head(c);
    if (c->first) return wait_until(c, now_ns() + (uint64_t)c->first * 1000), flush(c);
    c->due = now_ns();
  }
  long last = c->hold ? c->hold : c->tokens;
  do
    if (c->next < last) put_token(c);
  while (!c->gap && c->next < last);
  if (c->next < last) wait_until(c, c->due + (uint64_t)c->gap * 1000);
  else if (!c->hold) c->ended = true, put_end(c);
  return flush(c);
}

static long steer(const char *body, const char *key, long otherwise) {
  const char *at = strstr(body, "bench:"), *end = at ? strpbrk(at, "\" \\") : NULL,
             *found = at ? strstr(at, key) : NULL;
  return found && (!end || found < end) ? atol(found + strlen(key)) : otherwise;
}

static bool begin(Conn *c, const char *body) {
  requests++, active++;
  c->streaming = true, c->headed = c->ended = false, c->next = 0;
  c->tokens = steer(body, "tokens=", 10), c->gap = steer(body, "gap=", 0), c->first = steer(body, "first=", 0);
  c->hold = steer(body, "hold=", 0), c->stamp = steer(body, "stamp=", 0), c->id = steer(body, "id=", -1);
  long wait = steer(body, "wait=", 0);
  if (wait) return wait_until(c, now_ns() + (uint64_t)wait * 1000), true;
  return go_on(c);
}

static bool answer(Conn *c, const char *status, const char *json) {
  char head[160];
  put(c, head,
      (size_t)snprintf(head, sizeof head,
                       "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", status,
                       strlen(json)));
  put(c, json, strlen(json));
  return flush(c);
}

static bool stats(Conn *c) {
  static char json[CLOSES_MAX * 48 + 256];
  int n =
      sprintf(json, "{\"requests\":%ld,\"completed\":%ld,\"aborted\":%ld,\"active\":%ld,\"tokens\":%ld,\"closes\":[",
              requests, completed, aborted, active, tokens_sent);
  for (int i = 0; i < closes_len; i++)
    n += sprintf(json + n, "%s[%ld,%llu]", i ? "," : "", closes[i].id, (unsigned long long)closes[i].ns);
  sprintf(json + n, "]}");
  closes_len = 0;
  return answer(c, "200 OK", json);
}

// Serves each request that `in` holds whole, one after the other; false where the connection is lost, and freed.
static bool serve(Conn *c) {
  while (!c->streaming) {
    c->in[c->in_len] = 0;
    char *end = strstr(c->in, "\r\n\r\n"), *field = strcasestr(c->in, "\r\ncontent-length:");
    if (!end) return true;
    size_t head = (size_t)(end + 4 - c->in), body = field && field < end ? strtoul(field + 17, NULL, 10) : 0;
    if (head + body > REQUEST_MAX) return hang_up(c), false;
    if (c->in_len < head + body) return true;
    char after = c->in[head + body];
    c->in[head + body] = 0;
    bool alive =
        !strncmp(c->in, "GET /stats", 10) ? stats(c)
        : !strncmp(c->in, "GET ", 4)
            ? answer(c, "200 OK", "{\"object\":\"list\",\"data\":[{\"id\":\"gpt-4o-mini\",\"object\":\"model\"}]}")
        : strcasestr(c->in, "\r\ntransfer-encoding:") ? answer(c, "411 Length Required", "{}")
                                                      : begin(c, c->in + head);
    if (!alive) return false;
    c->in[head + body] = after;
    c->in_len -= head + body;
    memmove(c->in, c->in + head + body, c->in_len);
  }
  return true;
}

static void readable(Conn *c) {
  ssize_t n = recv(c->fd, c->in + c->in_len, REQUEST_MAX - c->in_len, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) return hang_up(c);
  c->in_len += (size_t)n;
  serve(c);
}

static void welcome(int listener) {
  int fd, one = 1;
  while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
    Conn *c = calloc(1, sizeof *c);
    c->fd = fd, c->heap_at = -1, c->in = malloc(REQUEST_MAX + 1);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event e = {EPOLLIN, {.ptr = c}};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
  }
}

static void make_literals(void) {
  for (int i = 0; i < WORD_COUNT; i++) {
    char *to = literals[i];
    for (const char *from = WORDS[i]; *from; from++) {
      if (*from == '"' || *from == '\\' || *from == '\n') *to++ = '\\';
      *to++ = *from == '\n' ? 'n' : *from;
    }
  }
}

int main(int argc, char **argv) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(argc > 1 ? atoi(argv[1]) : 0))};
  socklen_t size = sizeof address;
  struct rlimit files = {65536, 65536};
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
  setrlimit(RLIMIT_NOFILE, &files);
  signal(SIGPIPE, SIG_IGN);
  make_literals();
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) return perror("provider"), 1;
  getsockname(listener, (void *)&address, &size);
  printf("{\"port\":%d}\n", ntohs(address.sin_port));
  fflush(stdout);
  epoll_fd = epoll_create1(0);
  struct epoll_event e = {EPOLLIN, {.ptr = NULL}}, events[256];
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
  for (;;) {
    uint64_t now = now_ns();
    int timeout = !heap_len ? -1 : heap[0]->due <= now ? 0 : (int)((heap[0]->due - now + 999999) / 1000000);
    int n = epoll_wait(epoll_fd, events, 256, timeout);
    for (int i = 0; i < n; i++) {  // an event's connection may be freed here, but only by its own event
      Conn *c = events[i].data.ptr;
      if (!c) welcome(listener);
      else if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
      else if (flush(c)) serve(c);
    }
    for (now = now_ns(); heap_len && heap[0]->due <= now;) {
      Conn *c = heap[0];
      heap_remove(c);
      if (go_on(c)) serve(c);
    }
  }
}
