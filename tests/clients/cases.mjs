// Runs a driver again and again in this process, so that its packages load once: each line of standard input is a JSON
// array [URL, OPTIONS], and {"event": "over"} follows what a case printed, when nothing of it is left to wait for.
import { createInterface } from 'node:readline';
import { begin, say } from './say.mjs';

const driver = process.argv[2];
const complain = console.error; // a driver may silence it
let cases = 0;
let running = false;

createInterface({ input: process.stdin }).on('line', async (line) => {
  running = true;
  process.stdin.unref(); // what keeps this process alive now is of the case
  console.error = complain;
  begin(...JSON.parse(line));
  await import(`./${driver}?${(cases += 1)}`);
});

process.on('beforeExit', () => {
  if (!running) return;
  running = false;
  say('over');
  process.stdin.ref();
});
