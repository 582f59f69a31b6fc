// A client in JavaScript: the protocol's files are all that it has of us.
//
// Arguments: server address, folder of .proto files, and a JSON file {shape, pixels (base64), image (base64 PNG)}.
// Prints what the server answered, as JSON.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, protos, inputFile] = process.argv.slice(2);
const input = JSON.parse(fs.readFileSync(inputFile, "utf8"));
const definition = loader.loadSync(["open_inference.proto", "classifier.proto"], {
  includeDirs: [path.resolve(protos)],
  keepCase: true,
  longs: Number,
});
const { inference, foldserve } = grpc.loadPackageDefinition(definition);
const credentials = grpc.credentials.createInsecure();
const client = new inference.GRPCInferenceService(address, credentials);
const classifier = new foldserve.v1.Classifier(address, credentials);

const call = (stub, method, request) =>
  new Promise((resolve, reject) => {
    const deadline = Date.now() + 20_000;
    stub[method](request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });

// Sends all requests over one stream, and resolves to what came back, in order.
const stream = (stub, method, requests) =>
  new Promise((resolve, reject) => {
    const answers = [];
    const duplex = stub[method]({ deadline: Date.now() + 20_000 });
    duplex.on("data", (answer) => answers.push(answer));
    duplex.on("end", () => resolve(answers));
    duplex.on("error", reject);
    requests.forEach((request) => duplex.write(request));
    duplex.end();
  });

const inferRequest = (id, datatype = "UINT8") => ({
  model_name: "tiny",
  id,
  inputs: [{ name: "image", datatype, shape: input.shape }],
  raw_input_contents: [Buffer.from(input.pixels, "base64")],
});

const classifyRequest = (id, image) => ({ model_name: "tiny", id, images: [image], top_k: 2 });

// Float32 numbers as a flat list; copied, because a Buffer need not begin at a multiple of four.
const numbers = (raw) => Array.from(new Float32Array(new Uint8Array(raw).buffer));

const main = async () => {
  const answer = await call(client, "ModelInfer", inferRequest("42"));
  const typed = inferRequest("typed");
  typed.raw_input_contents = [];
  typed.inputs[0].contents = { uint_contents: Array.from(Buffer.from(input.pixels, "base64")) };
  const streamed = await stream(client, "ModelStreamInfer", [
    inferRequest("0"),
    inferRequest("wrong", "FP32"),
    inferRequest("2"),
  ]);
  const image = Buffer.from(input.image, "base64");
  const classified = await call(classifier, "Classify", classifyRequest("7", image));
  const classifiedInStream = await stream(classifier, "ClassifyStream", [
    classifyRequest("0", image),
    classifyRequest("1", Buffer.from("no image")),
  ]);
  const error = await call(client, "ModelInfer", inferRequest("", "FP32")).catch((failure) => failure);
  console.log(
    JSON.stringify({
      ready: (await call(client, "ServerReady", {})).ready,
      labels: JSON.parse((await call(client, "ModelMetadata", { name: "tiny" })).properties.labels),
      answered: [answer.id, answer.model_name, answer.model_version],
      shapes: answer.outputs.map((output) => [output.name, output.datatype, output.shape]),
      outputs: answer.raw_output_contents.map(numbers),
      typed_logits: numbers((await call(client, "ModelInfer", typed)).raw_output_contents[0]),
      streamed: streamed.map(({ error_message, infer_response }) => [
        infer_response.id,
        error_message || numbers(infer_response.raw_output_contents[0]),
      ]),
      classified: [classified.id, classified.model_version, classified.results],
      classified_in_stream: classifiedInStream.map(({ response, error: failure }) =>
        failure ? [failure.id, failure.status, failure.message] : [response.id, response.results],
      ),
      error: [error.code, error.details],
    }),
  );
};

main().then(
  () => [client, classifier].forEach((stub) => stub.close()),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
