import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Path;
import java.time.Duration;

/** Prints the answer to each picture, a line each. Arguments: URL PICTURE... */
public class ClassifyOverHttp {
  public static void main(String[] arguments) throws Exception {
    HttpClient client = HttpClient.newHttpClient();
    for (int index = 1; index < arguments.length; index++) {
      HttpRequest request =
          HttpRequest.newBuilder(URI.create(arguments[0]))
              .timeout(Duration.ofSeconds(60))
              .POST(BodyPublishers.ofFile(Path.of(arguments[index])))
              .build();
      HttpResponse<String> response = client.send(request, BodyHandlers.ofString());
      System.out.println(response.body());
      if (response.statusCode() != 200) {
        System.exit(1);
      }
    }
  }
}
