// What the stand-in answers and the load generator expects: token i of every answer is WORDS[i % WORD_COUNT], and a
// stamped token has "@ddddddddd@" before it, the microseconds of CLOCK_MONOTONIC modulo STAMP_MODULUS when it was sent.
#pragma once
#include <stdint.h>
#include <time.h>

#define STAMP_DIGITS 9
#define STAMP_MODULUS 1000000000ull

static const char *const WORDS[] = {
    " the",   " model",  " streams", " tokens",       " to",        " a",      " browser",
    ",",      " and",    " each",    " one",          " is",        " said",   ".",
    " It",    " \"so\"", " for",     " caf\u00e9",    "\n\n",       " \u2014", " C:\\tmp",
    " of",    " under",  " load",    " \U0001F600",   " {\"a\":1}", " item",   "-",
    " value", " 12",     " </b>&",   " \u65e5\u672c", " end",
};
#define WORD_COUNT (int)(sizeof WORDS / sizeof *WORDS)

static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}
