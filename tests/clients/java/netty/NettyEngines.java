import io.netty.buffer.ByteBufAllocator;
import io.netty.handler.ssl.SslContext;
import io.netty.handler.ssl.SslContextBuilder;
import io.netty.handler.ssl.SslProvider;
import java.io.File;
import java.security.KeyStore;
import java.util.Map;
import java.util.Set;
import javax.net.ssl.SSLEngine;
import javax.net.ssl.SSLException;
import javax.net.ssl.SSLParameters;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.security.auth.SslEngineFactory;

/** TLS of the Java client from netty's BoringSSL: `ssl.engine.factory.class`, with stores in PEM files. */
public final class NettyEngines implements SslEngineFactory {
    private SslContext context;

    @Override
    public void configure(Map<String, ?> settings) {
        File authority = new File((String) settings.get("ssl.truststore.location"));
        SslContextBuilder builder = SslContextBuilder.forClient().sslProvider(SslProvider.OPENSSL).trustManager(authority);
        if (settings.get("ssl.keystore.location") instanceof String store) {
            // Key and certificate are in one file.
            builder.keyManager(new File(store), new File(store));
        }
        try {
            context = builder.build();
        } catch (SSLException e) {
            throw new KafkaException(e);
        }
    }

    @Override
    public SSLEngine createClientSslEngine(String host, int port, String endpointIdentification) {
        SSLEngine engine = context.newEngine(ByteBufAllocator.DEFAULT, host, port);
        SSLParameters parameters = engine.getSSLParameters();
        parameters.setEndpointIdentificationAlgorithm(endpointIdentification);
        engine.setSSLParameters(parameters);
        return engine;
    }

    @Override
    public SSLEngine createServerSslEngine(String host, int port) {
        throw new UnsupportedOperationException("a client alone");
    }

    @Override
    public boolean shouldBeRebuilt(Map<String, Object> next) {
        return false;
    }

    @Override
    public Set<String> reconfigurableConfigs() {
        return Set.of();
    }

    @Override
    public KeyStore keystore() {
        return null;
    }

    @Override
    public KeyStore truststore() {
        return null;
    }

    @Override
    public void close() {
    }
}
