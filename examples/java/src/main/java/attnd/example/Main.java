package attnd.example;

import attnd.v1.AttentionRequest;
import attnd.v1.AttentionServiceGrpc;
import attnd.v1.AttentionServiceGrpc.AttentionServiceBlockingStub;
import attnd.v1.DataType;
import attnd.v1.Tensor;
import com.google.gson.Gson;
import com.google.protobuf.ByteString;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;

/**
 * Computes attention of a real layer on an attnd server, compares it with float64, measures the
 * smallest call, and shows the error of a wrong one. Arguments: HOST:PORT or unix:PATH, and FOLDER.
 */
public final class Main {
  private static final double ALLOWED_ERROR = 1.3e-6; // error of PyTorch's kernel on this data
  private static final int TIMED_CALLS = 500;

  /** A little-endian, row-major array of a .npy file of version 1. */
  private record Npy(List<Long> shape, ByteBuffer elements) {
    static Npy load(Path path, String type) throws IOException {
      ByteBuffer file = ByteBuffer.wrap(Files.readAllBytes(path)).order(ByteOrder.LITTLE_ENDIAN);
      int start = 10 + file.getShort(8); // magic, version and length, then a Python dictionary
      String header = new String(file.array(), 10, start - 10);
      var expected = "'descr': '" + type + "', 'fortran_order': False, 'shape': \\(([^)]*)\\)";
      var shape = Pattern.compile(expected).matcher(header);
      if (!shape.find()) {
        throw new IOException(path + ": expected " + type + " in C order, got " + header);
      }
      var extents = Arrays.stream(shape.group(1).split(",\\s*")).map(Long::valueOf).toList();
      return new Npy(extents, file.position(start).slice().order(ByteOrder.LITTLE_ENDIAN));
    }
  }

  private static Tensor load(Path folder, String name) throws IOException {
    Npy npy = Npy.load(folder.resolve(name + ".npy"), "<f4");
    return tensorOf(npy.shape(), ByteString.copyFrom(npy.elements()));
  }

  private static Tensor tensorOf(List<Long> shape, ByteString data) {
    var tensor = Tensor.newBuilder().setDtype(DataType.DATA_TYPE_F32);
    return tensor.addAllShape(shape).setData(data).build();
  }

  /** Returns one row of zeros. */
  private static Tensor row(int dimensions) {
    return tensorOf(List.of(1L, (long) dimensions), ByteString.copyFrom(new byte[4 * dimensions]));
  }

  private static AttentionRequest request(Tensor query, Tensor key, Tensor value) {
    return AttentionRequest.newBuilder().setQuery(query).setKey(key).setValue(value).build();
  }

  /** Returns the largest difference; infinite if the lengths differ, NaN for a NaN. */
  private static double worstError(ByteBuffer got, ByteBuffer expected) {
    double worst = got.remaining() * 2 == expected.remaining() ? 0 : Double.POSITIVE_INFINITY;
    while (got.hasRemaining() && expected.hasRemaining()) {
      worst = Math.max(worst, Math.abs(got.getFloat() - expected.getDouble()));
    }
    return worst;
  }

  private static double realAttention(AttentionServiceBlockingStub attnd, Path folder)
      throws IOException {
    var request = request(load(folder, "query"), load(folder, "key"), load(folder, "value"));
    long start = System.nanoTime();
    var reply = attnd.attention(request);
    var stats = reply.getStats();
    System.out.printf(
        "attention     %s by %s %s on %d thread(s): %.2f ms of %.2f ms%n",
        reply.getOutput().getShapeList(), stats.getIsa(), stats.getKernel(), stats.getThreads(),
        stats.getComputeTime().getSeconds() * 1e3 + stats.getComputeTime().getNanos() / 1e6,
        (System.nanoTime() - start) / 1e6);
    var output = reply.getOutput().getData().asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN);
    return worstError(output, Npy.load(folder.resolve("expected.npy"), "<f8").elements());
  }

  /** Returns the p50 of a call that only goes to the server and back, in microseconds. */
  private static double smallestCall(AttentionServiceBlockingStub attnd) {
    long[] times = new long[TIMED_CALLS];
    for (int i = -TIMED_CALLS; i < TIMED_CALLS; i++) { // negative: warm up the JIT
      long start = System.nanoTime();
      attnd.attention(request(row(1), row(1), row(1)));
      times[Math.max(i, 0)] = System.nanoTime() - start;
    }
    Arrays.sort(times);
    return times[TIMED_CALLS / 2] / 1e3;
  }

  /** Sends a key with the wrong head_dim, and prints the error, which names the field. */
  private static void refusedCall(AttentionServiceBlockingStub attnd) throws IOException {
    try {
      attnd.attention(request(row(2), row(3), row(2)));
    } catch (StatusRuntimeException refusal) {
      System.out.print("refused       " + refusal.getStatus().getCode());
      for (var detail : StatusProto.fromThrowable(refusal).getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          System.out.print(", " + detail.unpack(ErrorInfo.class).getReason());
        } else if (detail.is(BadRequest.class)) {
          for (var wrong : detail.unpack(BadRequest.class).getFieldViolationsList()) {
            System.out.printf(" in %s%n%14s%s%n", wrong.getField(), "", wrong.getDescription());
          }
        }
      }
    }
  }

  public static void main(String[] arguments) throws IOException {
    if (arguments.length != 2) {
      throw new IllegalArgumentException("expected (HOST:PORT | unix:PATH) FOLDER");
    }
    var json = Main.class.getResourceAsStream("/attnd/v1/attention_grpc_service_config.json");
    Map<String, ?> config = new Gson().fromJson(new String(json.readAllBytes()), Map.class);
    // By default, gRPC refuses answers above 4 MiB, does not retry requests above 1 MiB, and
    // sends the tensors through the web proxy that the properties of the JVM name.
    var channel =
        Grpc.newChannelBuilder(arguments[0], InsecureChannelCredentials.create())
            .maxInboundMessageSize(Integer.MAX_VALUE)
            .perRpcBufferLimit(Integer.MAX_VALUE)
            .retryBufferSize(Integer.MAX_VALUE)
            .proxyDetector(address -> null)
            .defaultServiceConfig(config)
            .build();
    // gRPC sends the deadline to the server, which stops computing when it has passed.
    var stub = AttentionServiceGrpc.newBlockingStub(channel);
    var attnd = stub.withDeadlineAfter(60, TimeUnit.SECONDS);
    double worst = realAttention(attnd, Path.of(arguments[1]));
    System.out.printf("worst error   %.3e, allowed %.1e%n", worst, ALLOWED_ERROR);
    System.out.printf("smallest call p50 %.1f us of %d%n", smallestCall(attnd), TIMED_CALLS);
    refusedCall(attnd);
    channel.shutdownNow();
    System.exit(worst <= ALLOWED_ERROR ? 0 : 1);
  }
}
