// Compares an answer with the text that it must have, while it arrives.
#pragma once
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"

#define ANY_DIGIT '\1'  // in the expected text: a digit of a stamp

typedef struct {
  uint64_t *ns;
  size_t len, cap;
} Samples;

typedef struct {
  size_t at;       // how much of the expected text came
  uint64_t stamp;  // the digits of one so far
} Check;

static char *expected;
static size_t expected_len;
static Samples token_delay;  // from the stamp's time to ours

static void add(Samples *s, uint64_t ns) {
  if (s->len == s->cap) s->ns = realloc(s->ns, sizeof *s->ns * (s->cap = s->cap ? s->cap * 2 : 4096));
  s->ns[s->len++] = ns;
}

static void expect_text(long tokens, bool stamped) {
  char *to = expected = malloc((size_t)tokens * 64 + 1);
  for (long i = 0; i < tokens; i++) {
    if (stamped) {
      *to++ = '@';
      to = (char *)memset(to, ANY_DIGIT, STAMP_DIGITS) + STAMP_DIGITS;
      *to++ = '@';
    }
    to = stpcpy(to, WORDS[i % WORD_COUNT]);
  }
  expected_len = (size_t)(to - expected);
}

static bool byte_matches(Check *c, char byte, uint64_t now) {
  if (c->at == expected_len) return false;
  char next = expected[c->at];
  if (next != ANY_DIGIT ? byte != next : byte < '0' || byte > '9') return false;
  c->at++;
  if (next != ANY_DIGIT) return true;
  c->stamp = c->stamp * 10 + (uint64_t)(byte - '0');
  if (expected[c->at] == ANY_DIGIT) return true;
  add(&token_delay, (now / 1000 + STAMP_MODULUS - c->stamp) % STAMP_MODULUS * 1000);
  c->stamp = 0;
  return true;
}

static bool code_point_matches(Check *c, unsigned code, uint64_t now) {
  char utf8[4];
  int len = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  for (int i = len - 1; i > 0; i--, code >>= 6) utf8[i] = (char)(0x80 | (code & 63));
  utf8[0] = (char)(len == 1 ? code : (0xf00u >> len & 0xff) | code);
  for (int i = 0; i < len; i++)
    if (!byte_matches(c, utf8[i], now)) return false;
  return true;
}

// Compares the contents of a JSON string (RFC 8259), up to its closing quote, with the text that must come next.
static bool string_matches(Check *c, const char *s, uint64_t now) {
  static const char escapes[] = "n\nt\tr\rb\bf\f";
  for (; *s && *s != '"'; s++) {
    bool same;
    unsigned code, low;
    const char *escape;
    if (*s != '\\') {
      same = byte_matches(c, *s, now);
    } else if (!*++s) {
      return false;
    } else if (*s != 'u') {
      escape = strchr(escapes, *s);
      same = byte_matches(c, escape ? escape[1] : *s, now);
    } else {
      if (sscanf(s + 1, "%4x", &code) != 1) return false;
      s += 4;
      if (code >> 10 == 0x36 && sscanf(s + 1, "\\u%4x", &low) == 1) {
        code = 0x10000 + ((code & 1023) << 10 | (low & 1023));
        s += 6;
      }
      same = code_point_matches(c, code, now);
    }
    if (!same) return false;
  }
  return *s == '"';
}
