// The stream of the page: one request that is read as it comes, and made again when it ends.

import { Failure, open } from "./api.js";
import { events } from "./event-stream.js";

const STALL_MS = 30_000; // the server pings every 10 s
const HIDDEN_MS = 60_000;
const WAITS_MS = [500, 1_000, 2_000, 4_000, 8_000];

/**
 * Follow the stream until `stop` is called, or the server refuses the key.
 * @param {{part: (name: string, data: any) => void, state: (state: "connecting" | "live" | "lost" | "paused", problem?: string) => void,
 *   refused: () => void}} view
 * @returns {{stop: () => void, now: () => void}} `now` connects at once
 */
export function follow(view) {
  let controller = new AbortController();
  let wake = () => {};
  let stopped = false;
  let hiding = 0;
  let asleep = false;

  const run = async () => {
    for (let tries = 0; !stopped; tries += 1) {
      if (asleep) {
        view.state("paused");
        await new Promise((resolve) => void (wake = () => resolve(undefined)));
        continue;
      }
      controller = new AbortController();
      const { signal } = controller;
      let stalled = setTimeout(() => controller.abort(), STALL_MS);
      let problem = "";
      try {
        view.state("connecting");
        const response = await open("live", { signal });
        for await (const { name, data } of events(/** @type {any} */ (response.body))) {
          clearTimeout(stalled);
          stalled = setTimeout(() => controller.abort(), STALL_MS);
          tries = -1;
          view.state("live");
          if (name === "refused") return void view.refused();
          if (data) view.part(name, data);
        }
      } catch (error) {
        if (error instanceof Failure && error.status === 401) return;
        if (error instanceof Failure && error.code !== "unreachable") problem = error.message;
      } finally {
        clearTimeout(stalled);
      }
      if (stopped || asleep) continue;
      view.state("lost", problem);
      await new Promise((resolve) => {
        wake = () => resolve(undefined);
        setTimeout(resolve, WAITS_MS[Math.min(Math.max(tries, 0), WAITS_MS.length - 1)]);
      });
    }
  };

  const onVisible = () => {
    clearTimeout(hiding);
    if (document.hidden) {
      hiding = setTimeout(() => {
        asleep = true;
        controller.abort();
      }, HIDDEN_MS);
    } else {
      asleep = false;
      wake();
    }
  };
  const onOnline = () => wake();
  document.addEventListener("visibilitychange", onVisible);
  addEventListener("online", onOnline);
  run();
  return {
    stop() {
      stopped = true;
      controller.abort();
      wake();
      clearTimeout(hiding);
      document.removeEventListener("visibilitychange", onVisible);
      removeEventListener("online", onOnline);
    },
    now: () => wake(),
  };
}
