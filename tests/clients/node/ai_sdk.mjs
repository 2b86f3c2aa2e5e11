// AI SDK: text, stream, objects and tools, over chat completions and over responses.
import assert from "node:assert";
import { createRequire } from "node:module";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

console.log("ai", createRequire(import.meta.url)("ai/package.json").version);
const baseURL = `${process.argv[2]}/v1`;
const compatible = createOpenAICompatible({ name: "quantd", baseURL, supportsStructuredOutputs: true })("demo");
const responses = createOpenAI({ baseURL, apiKey: "none" }).responses("demo");
const prompt = "What is 12 plus 7?";

for (const [name, model] of [["compatible", compatible], ["responses", responses]]) {
  const { text } = await generateText({ model, prompt, temperature: 0, maxRetries: 0 });
  assert(text.includes("19"));
  console.log(`${name} text:`, text);

  const stream = streamText({ model, prompt, temperature: 0, maxRetries: 0 });
  let streamed = "";
  for await (const delta of stream.textStream) streamed += delta;
  assert(streamed.includes("19"));
  assert.equal(await stream.finishReason, "stop");
  console.log(`${name} stream:`, streamed);

  const { object } = await generateObject({
    model, prompt, maxRetries: 0, maxOutputTokens: 100, schema: z.object({ legs: z.number().int().min(0).max(8) }),
  });
  assert(Number.isInteger(object.legs));
  console.log(`${name} object:`, object);

  let added = null;
  const steps = await generateText({
    model, prompt, maxRetries: 0, maxOutputTokens: 100, toolChoice: { type: "tool", toolName: "add" },
    tools: {
      add: tool({
        description: "Adds",
        inputSchema: z.object({ a: z.number().int().min(0).max(99), b: z.number().int().min(0).max(99) }),
        execute: async ({ a, b }) => (added = a + b),
      }),
    },
    stopWhen: stepCountIs(1),
  });
  assert.equal(steps.finishReason, "tool-calls");
  assert(Number.isInteger(added));
  console.log(`${name} tool:`, added);
}
