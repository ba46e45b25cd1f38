// Every Node client, plain and streamed, in every case of cases.json. Run by scripts/clients; as clients.py.

import { readFileSync } from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { NoObjectGeneratedError, generateObject, generateText, jsonSchema, streamObject, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const url = process.argv[2];
const cases = JSON.parse(readFileSync(new URL("cases.json", import.meta.url), "utf8"));
const SAFE = "Use a certified igniter and follow the maker's leaflet.";
const REFUSAL = "I can't help with";
const ask = "How do I light it?";
const messages = [{ role: "user", content: ask }];
const parameters = {
  type: "object",
  properties: { to: { type: "string" } },
  required: ["to"],
  additionalProperties: false,
};
const answer = z.object({ how: z.string() });
const tools = [{ type: "function", function: { name: "send", parameters, strict: true } }];

const TEXTS = ["clean", "waits", "flagged", "flagged-midway", "refused", "refused-midway", "crisis"];
const CALLS = ["call", "call-refused"];
const OBJECTS = ["object", "object-refused"];
const isCall = (name) => CALLS.includes(name);
const isObject = (name) => OBJECTS.includes(name);
const parsed = (text) => (text ? JSON.parse(text) : null);

// What is wrong with what a program sees, or null. `refusal` is a refusal in a place of its own, apart from the text.
function wrong(name, { text = "", refusal = "", calls = [], object = null, ...rest }) {
  const { shows, ...said } = cases[name];
  if (JSON.stringify([text, refusal, calls, object, rest]).includes("⟦")) return "flagged text";
  if (shows === "whole" && text !== said.text) return "not the text";
  if (shows === "safe completion" && !text.endsWith(SAFE)) return "no safe completion";
  if (shows === "crisis" && !text.startsWith(REFUSAL)) return "no visible text";
  if (shows === "refusal" && !rest.hidden && !(text + refusal).includes(REFUSAL)) return "no refusal";
  if (JSON.stringify(calls) !== JSON.stringify(shows === "call" ? [said.call] : [])) return "not the calls";
  if (JSON.stringify(object) !== JSON.stringify(shows === "object" ? parsed(said.text) : null)) return "not the object";
  return null;
}

// openai-node

const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "sk-test", maxRetries: 0, timeout: 20_000 });

function asked(model) {
  const format = isObject(model) && { response_format: zodResponseFormat(answer, "answer") };
  return { model, messages, ...(isCall(model) && { tools }), ...format };
}

function ofChoice({ message, finish_reason: finish }) {
  const calls = (message.tool_calls ?? []).map((call) => JSON.parse(call.function.arguments));
  return { text: message.content ?? "", refusal: message.refusal ?? "", finish, calls, object: message.parsed ?? null };
}

async function chat(model) {
  const say = isObject(model) ? "parse" : "create";
  return ofChoice((await openai.chat.completions[say](asked(model))).choices[0]);
}

async function chatStream(model) {
  const stream = openai.chat.completions.stream(asked(model));
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const seen = ofChoice((await stream.finalChatCompletion()).choices[0]);
  return { ...seen, apart: text };
}

async function chatEvents(model) {
  const seen = { text: "", finish: null };
  for await (const event of await openai.chat.completions.create({ ...asked(model), stream: true })) {
    seen.text += event.choices[0]?.delta.content ?? "";
    seen.finish = event.choices[0]?.finish_reason ?? seen.finish;
  }
  return seen;
}

function askedOfResponses(model) {
  const format = zodTextFormat(answer, "answer");
  const named = [{ type: "function", name: "send", parameters, strict: true }];
  return { model, input: ask, ...(isCall(model) && { tools: named }), ...(isObject(model) && { text: { format } }) };
}

function ofResponse(response) {
  const parts = response.output.flatMap((item) => (item.type === "message" ? item.content : []));
  const refusal = parts.map((part) => part.refusal ?? "").join("");
  const calls = response.output.filter((item) => item.type === "function_call").map((item) => JSON.parse(item.arguments));
  return { text: response.output_text, refusal, finish: response.status, calls, object: response.output_parsed ?? null };
}

async function responses(model) {
  return ofResponse(await openai.responses.parse(askedOfResponses(model)));
}

async function responsesStream(model) {
  const stream = openai.responses.stream(askedOfResponses(model));
  for await (const _ of stream);
  return ofResponse(await stream.finalResponse());
}

async function completions(model) {
  const [{ text, finish_reason: finish }] = (await openai.completions.create({ model, prompt: ask })).choices;
  return { text, finish };
}

async function completionsStream(model) {
  const seen = { text: "", finish: null };
  for await (const event of await openai.completions.create({ model, prompt: ask, stream: true })) {
    seen.text += event.choices[0].text;
    seen.finish = event.choices[0].finish_reason ?? seen.finish;
  }
  return seen;
}

async function moderations(model) {
  const { text, shows } = cases[model];
  const [result] = (await openai.moderations.create({ model, input: text })).results;
  if (result.flagged !== (shows !== "whole") || result.categories.illicit !== result.flagged) throw Error("misjudged");
  return { text: shows === "whole" ? text : shows === "safe completion" ? SAFE : REFUSAL };
}

// Vercel's AI SDK

const vercel = createOpenAICompatible({
  name: "guardrail",
  baseURL: `${url}/v1`,
  apiKey: "sk-test",
  supportsStructuredOutputs: true,
});
const card = tool({ description: "Sends a card.", inputSchema: jsonSchema(parameters) });

function given(name) {
  return { model: vercel(name), prompt: ask, maxRetries: 0, ...(isCall(name) && { tools: { send: card } }) };
}

async function vercelText(name) {
  const { text, finishReason: finish, toolCalls } = await generateText(given(name));
  return { text, finish, calls: toolCalls.map((call) => call.input) };
}

async function vercelStream(name) {
  const result = streamText({ ...given(name), onError: () => {} });
  const seen = { text: "", calls: [] };
  for await (const part of result.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") seen.text += part.text;
    if (part.type === "tool-call") seen.calls.push(part.input);
    if (part.type.startsWith("tool-input") && name === "call-refused") throw Error("part of a refused call");
    if (part.type === "finish") seen.finish = part.finishReason;
  }
  return seen;
}

async function vercelObject(name) {
  try {
    const { object, finishReason: finish } = await generateObject({ ...given(name), schema: answer });
    return { object, finish };
  } catch (error) {
    return ofNoObject(error);
  }
}

async function vercelObjectStream(name) {
  const result = streamObject({ ...given(name), schema: jsonSchema(answer), onError: () => {} });
  for await (const _ of result.partialObjectStream);
  try {
    return { object: await result.object, finish: await result.finishReason };
  } catch (error) {
    return ofNoObject(error);
  }
}

// The SDK does not read `message.refusal`: that there is no object is all that it can say, whoever refused.
function ofNoObject(error) {
  if (!NoObjectGeneratedError.isInstance(error)) throw error;
  return { hidden: true, text: error.text ?? "", finish: error.finishReason };
}

const CLIENTS = [
  ["openai chat", chat, [...TEXTS, ...CALLS, ...OBJECTS]],
  ["openai chat.stream", chatStream, [...TEXTS, ...CALLS, ...OBJECTS]],
  ["openai chat, stream: true", chatEvents, TEXTS],
  ["openai responses", responses, [...TEXTS, ...CALLS, ...OBJECTS]],
  ["openai responses.stream", responsesStream, [...TEXTS, ...CALLS, ...OBJECTS]],
  ["openai completions", completions, TEXTS],
  ["openai completions, stream: true", completionsStream, TEXTS],
  ["openai moderations", moderations, TEXTS],
  ["vercel generateText", vercelText, [...TEXTS, ...CALLS]],
  ["vercel streamText", vercelStream, [...TEXTS, ...CALLS]],
  ["vercel generateObject", vercelObject, OBJECTS],
  ["vercel streamObject", vercelObjectStream, OBJECTS],
];

let passed = 0;
let failed = 0;
for (const [client, run, names] of CLIENTS) {
  const refusals = new Set();
  const started = performance.now();
  for (const name of names) {
    try {
      const seen = await run(name);
      const fault = wrong(name, seen);
      if (fault) throw Error(`${fault}: ${JSON.stringify(seen)}`);
      passed += 1;
      const where = seen.hidden ? "an error without it" : (seen.text ?? "").includes(REFUSAL) ? "text" : "refusal";
      if (cases[name].shows === "refusal") refusals.add(`${where} (${seen.finish})`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED  ${client}: ${name}: ${error.stack}`);
    }
  }
  const shown = refusals.size ? `a refusal is ${[...refusals].sort().join(" or ")}` : "";
  console.log(`${client.padEnd(40)} ${((performance.now() - started) / 1000).toFixed(1).padStart(5)}s  ${shown}`);
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
