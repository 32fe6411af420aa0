# Serves a file of $BYTES bytes and takes another in, until both are through.
set -e
mkfs.ext4 -q -F /dev/vdc
mkdir -p /srv
mount /dev/vdc /srv
mkdir /srv/in /srv/tmp
openssl rand -out /srv/file "$BYTES"
chown -R www-data: /srv
cat >/etc/nginx/nginx.conf <<END
user www-data;
events {}
http {
    client_max_body_size 0;
    client_body_temp_path /srv/tmp;
    server {
        listen 8080;
        root /srv;
        location /in/ { dav_methods PUT; }
    }
}
END
systemctl restart nginx
echo "given $(sha256sum /srv/file | cut -d' ' -f1)"
echo SERVING
until [ -e /srv/in/done ]; do sleep 1; done
echo "taken $(sha256sum /srv/in/file | cut -d' ' -f1)"
