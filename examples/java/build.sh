#!/bin/sh
# Generates the Java stubs from protos/ and compiles Classify.java, in this folder or in the one given:
#
#     apt install default-jdk-headless protobuf-compiler protobuf-compiler-grpc-java-plugin libgrpc-java \
#       libprotobuf-java libperfmark-java libnetty-java libgoogle-gson-java libgeronimo-annotation-1.3-spec-java
#     ./build.sh
#
# Debian's packages are enough, without a network. With Maven or Gradle instead: io.grpc:grpc-netty, grpc-protobuf and
# grpc-stub, and protoc-gen-grpc-java in place of grpc_java_plugin.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
out=$(CDPATH= cd -- "${1:-$here}" && pwd)
jars=/usr/share/java
mkdir -p "$out/stubs" "$out/classes"
protoc --proto_path="$here/../../protos" --plugin=protoc-gen-grpc-java="$(command -v grpc_java_plugin)" \
  --java_out="$out/stubs" --grpc-java_out="$out/stubs" classifier.proto
names="grpc-api grpc-context grpc-core grpc-netty grpc-protobuf grpc-protobuf-lite grpc-stub protobuf guava
  perfmark-api netty-buffer netty-codec netty-codec-http netty-codec-http2 netty-common netty-handler netty-handler-proxy
  netty-resolver netty-transport netty-transport-native-unix-common gson geronimo-annotation-1.3-spec"
classpath=$out/classes
for name in $names; do classpath=$classpath:$jars/$name.jar; done
javac -proc:none -classpath "$classpath" -d "$out/classes" "$here/Classify.java" $(find "$out/stubs" -name '*.java')
printf '#!/bin/sh\nexec java -classpath "%s" Classify "$@"\n' "$classpath" > "$out/classify"
chmod +x "$out/classify"
