import com.google.protobuf.ByteString;
import foldserve.v1.ClassifierGrpc;
import foldserve.v1.ClassifierOuterClass.ClassifyRequest;
import foldserve.v1.ClassifierOuterClass.ClassifyResponse;
import io.grpc.ManagedChannel;
import io.grpc.netty.NettyChannelBuilder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;
import java.util.concurrent.TimeUnit;

/** Sends pictures to foldserve: ./build.sh && ./classify MODEL PICTURE ...; FOLDSERVE_SERVER is its HOST:PORT. */
public final class Classify {
  private Classify() {}

  /** Prints the two most probable labels of each picture. */
  public static void main(String[] arguments) throws Exception {
    String server = System.getenv().getOrDefault("FOLDSERVE_SERVER", "127.0.0.1:8001");
    ClassifyRequest.Builder request = ClassifyRequest.newBuilder().setModelName(arguments[0]).setTopK(2);
    for (int index = 1; index < arguments.length; index++) {
      request.addImages(ByteString.copyFrom(Files.readAllBytes(Path.of(arguments[index]))));
    }
    ManagedChannel channel = NettyChannelBuilder.forTarget(server).usePlaintext().build();
    try {
      ClassifyResponse answer =
          ClassifierGrpc.newBlockingStub(channel)
              .withDeadlineAfter(30, TimeUnit.SECONDS)
              .classify(request.build());
      for (int index = 0; index < answer.getResultsCount(); index++) {
        StringBuilder line = new StringBuilder(arguments[index + 1]);
        for (ClassifyResponse.Label label : answer.getResults(index).getLabelsList()) {
          line.append(String.format(Locale.ROOT, "\t%s %.1f%%", label.getName(), 100 * label.getProbability()));
        }
        System.out.println(line);
      }
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }
}
