import java.io.FileInputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import javax.net.ssl.HttpsURLConnection;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public class Client {
    static boolean failed;

    interface Call {
        String get(String url) throws Exception;
    }

    static void call(String name, String url, Call call) {
        try {
            System.out.println(name + " " + call.get(url));
        } catch (Exception e) {
            failed = true;
            System.out.println(name + " failed " + e);
        }
    }

    // The tests' certificate, and no other.
    static SSLContext trust(String file) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (FileInputStream in = new FileInputStream(file)) {
            store.setCertificateEntry("tests", CertificateFactory.getInstance("X.509").generateCertificate(in));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        return context;
    }

    public static void main(String[] args) throws Exception {
        SSLContext context = trust(System.getenv("E2E_CA"));
        HttpsURLConnection.setDefaultSSLSocketFactory(context.getSocketFactory());
        HttpClient client = HttpClient.newBuilder().sslContext(context).connectTimeout(Duration.ofSeconds(20)).build();
        Call modern = url -> {
            HttpResponse<String> answer = client.send(HttpRequest.newBuilder(URI.create(url)).build(), HttpResponse.BodyHandlers.ofString());
            return answer.statusCode() + " " + answer.body();
        };
        Call old = url -> {
            HttpURLConnection connection = (HttpURLConnection) URI.create(url).toURL().openConnection();
            return connection.getResponseCode() + " " + new String(connection.getInputStream().readAllBytes());
        };
        call("java-https", System.getenv("E2E_HTTPS"), modern);
        call("java-http", System.getenv("E2E_HTTP"), modern);
        call("java-url-https", System.getenv("E2E_HTTPS"), old);
        call("java-url-http", System.getenv("E2E_HTTP"), old);
        System.out.println("java-option " + System.getProperty("e2e.kept"));
        System.exit(failed ? 1 : 0);
    }
}
