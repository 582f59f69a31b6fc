// Runs a model.onnx with onnxruntime-web (WebAssembly), as a page in a browser does.
// Arguments: the file, JSON file of images {shape, pixels (base64)}. Prints logits and probabilities as JSON.
'use strict';

const fs = require('fs');
const ort = require('onnxruntime-web');

async function main() {
  const [modelFile, inputFile] = process.argv.slice(2);
  const input = JSON.parse(fs.readFileSync(inputFile, 'utf8'));
  const pixels = new Uint8Array(Buffer.from(input.pixels, 'base64'));
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(fs.readFileSync(modelFile), { executionProviders: ['wasm'] });
  const answers = await session.run({ image: new ort.Tensor('uint8', pixels, input.shape) });
  const report = {};
  for (const name of ['logits', 'probabilities']) {
    report[name] = { shape: answers[name].dims, data: Array.from(answers[name].data) };
  }
  console.log(JSON.stringify(report));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
